"""The tables of a models file, as data. Reading the file is shared/models_file/reading.py."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, WithJsonSchema

from shared.domain.durations import seconds_of
from shared.domain.job import MODEL_NAME
from shared.models_file.model_settings import ModelSettings, given_settings
from shared.models_file.upstreams import URLS_MAX, Upstream

WORKERS_MAX = 64
SIZE = re.compile(r"\d+(\.\d+)? ?[kKMGT]i?B")
NAMES_MAX = 64
MODELS_MAX = 1000


class Load(StrEnum):
    """A host loads a model as soon as the host starts, when a request wants it, or when an operator says so."""

    AT_START = "at_start"
    ON_DEMAND = "on_demand"
    MANUAL = "manual"


def _name(text: str) -> str:
    if not MODEL_NAME.fullmatch(text):
        raise ValueError("it cannot be a model's name (letters, digits, '.', '_', '-', '/')")
    return text


def _size(value: object) -> object:
    """`auto` is None. A bare number would leave open which unit it has."""
    if value is None or value == "auto":
        return None
    if not isinstance(value, str) or not SIZE.fullmatch(value):
        raise ValueError("it must be auto or a size like 22GiB or 800MiB")
    return value


def _least_and_most(value: object) -> object:
    """One number is both."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _in_order(workers: tuple[int, int]) -> tuple[int, int]:
    if workers[0] > workers[1]:
        raise ValueError("it must be [least, most], and least may not be more than most")
    return workers


Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{MODEL_NAME.pattern}$"})]
Duration = Annotated[
    float,
    Field(ge=0, allow_inf_nan=True),
    BeforeValidator(seconds_of),
    WithJsonSchema({"type": ["string", "number"], "examples": ["10m"]}),
]
Size = Annotated[
    ByteSize | None, BeforeValidator(_size), WithJsonSchema({"type": "string", "examples": ["auto", "22GiB"]})
]
Count = Annotated[int, Field(ge=1, le=WORKERS_MAX)]
Workers = Annotated[
    tuple[Count, Count],
    BeforeValidator(_least_and_most),
    AfterValidator(_in_order),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": WORKERS_MAX},
                {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 1, "maximum": WORKERS_MAX},
                    "minItems": 2,
                    "maxItems": 2,
                },
            ]
        }
    ),
]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Host(Table):
    """The models of this machine may take this together."""

    memory: Size = Field(None, description="main memory for models, like 22GiB; auto takes what is free at the start")
    devices: Literal["auto"] | list[int | str] = Field(
        "auto",
        max_length=NAMES_MAX,
        description="GPUs for models, as CUDA_VISIBLE_DEVICES names them, like [0, 1]; auto takes all, [] none",
    )


class Recommended(Table):
    """Sampling parameters for what a request leaves open; they win over the model's own generation config."""

    temperature: float | None = Field(None, ge=0, le=2, description="randomness; 0 takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1, description="probability of the tokens that are sampled from")
    top_k: int | None = Field(None, ge=0, description="number of the tokens that are sampled from; 0 for all")
    min_p: float | None = Field(None, ge=0, le=1, description="least probability, relative to the likeliest token's")
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="more than 1 makes repeats rarer")

    @property
    def given(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class Defaults(ModelSettings):
    """These hold for every model that does not say otherwise. Settings are those of PENSTOCK_, in lower case."""

    engine: str = Field(
        "",
        description="native, vllm, llamacpp, scripted or PACKAGE.MODULE:CLASS; empty takes what fits the source",
    )
    load: Load = Field(Load.ON_DEMAND, description="when a model is loaded: at_start, on_demand or manual")
    keep_alive: Duration = Field(600.0, description="how long an idle model stays loaded: 10m, 0, forever")


class Model(Defaults):
    """One model. Its settings win over the defaults."""

    source: str = Field(
        "", description="builtin, a folder or a file below root, or a hub id; its name is its source if none is given"
    )
    aliases: list[Name] = Field([], max_length=NAMES_MAX, description="further names of the model")
    adapters: dict[Name, str] = Field(
        {}, max_length=NAMES_MAX, description="LoRA adapters, as NAME = SOURCE; each is served under its name"
    )
    options: dict[str, Any] = Field({}, description="options that only this engine knows")
    upstreams: list[Upstream] = Field(
        [], max_length=URLS_MAX, description="servers that compute the model by OpenAI's API, in their order"
    )
    run: str = Field(
        "", max_length=10_000, description="command of a server that speaks OpenAI's API and listens on ${PORT}"
    )
    ready: str = Field("/health", pattern="^/", description="path that this server answers with 200 when it is ready")
    workers: Workers = Field(
        (1, 1), description="workers at least and at most while it is loaded: [least, most], or one number for both"
    )
    pin: bool = Field(False, description="whether it is never unloaded for another model")
    recommended: Annotated[Recommended, Field(description="sampling parameters for what a request leaves open")] = (
        Recommended.model_validate({})
    )

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that the file gives to the model."""
        return given_settings(self)

    @property
    def other_names(self) -> tuple[str, ...]:
        """Return the further names under which the model is asked for: its aliases and its adapters."""
        return (*self.aliases, *self.adapters)


class Route(Table):
    """One name over several models: those that are loaded first, else in their order."""

    order: list[Name] = Field(min_length=1, max_length=NAMES_MAX, description="the models, the best first")
    spill_after: Duration = Field(
        30.0, description="wait in the queue from which a request goes to the next model of the order"
    )


class Tables(Table):
    """The whole file, as it is written."""

    root: str = Field("", description="folder in which relative sources lie; the file's own folder if none is given")
    default: str = Field("", description="model or route of requests that name none")
    host: Annotated[Host, Field(description="the machine")] = Host.model_validate({})
    defaults: Annotated[Defaults, Field(description="what holds for every model")] = Defaults.model_validate({})
    models: dict[Name, Model] = Field(min_length=1, max_length=MODELS_MAX, description="the models, by their names")
    routes: dict[Name, Route] = Field({}, max_length=MODELS_MAX, description="names over several models")


def json_schema() -> Mapping[str, Any]:
    """Return the JSON Schema of the file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Tables.model_json_schema(),
        "title": "Penstock's models.toml",
    }
