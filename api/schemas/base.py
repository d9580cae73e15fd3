"""The common base of all request bodies: unknown fields are refused, no value is converted to another type, and every
list has a bound. The bound is checked before the items, and the first wrong item ends the check: pydantic would
otherwise create an error for each of a million."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from shared.domain.durations import seconds_of
from shared.domain.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Items:
    """Bounds the items of a list or a mapping. It stands in `Annotated`, right after the type."""

    most: int
    least: int = 0

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        def bounded(given: Any) -> Any:
            inner: Any = handler(given)
            least = {"min_length": self.least} if self.least else {}
            fail_fast = {"fail_fast": True} if inner["type"] == "list" else {}
            return inner | {"max_length": self.most} | least | fail_fast

        return BeforeValidator(self._check).__get_pydantic_core_schema__(source, bounded)  # type: ignore[arg-type]

    def _check(self, value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > self.most:
            raise ValueError(f"it has {len(value)} items; at most {self.most} are allowed")
        return value


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _no_more_than_there_are(cls, data: Any) -> Any:
        """Refuse a body with more fields than the model has by its first unknown field alone."""
        if isinstance(data, dict) and len(data) > len(cls.model_fields):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            unknown = next(name for name in data if name not in known)
            raise InvalidRequest(f"Unknown parameter: '{unknown}'.", param=unknown)
        return data


EXTRA_MAX = 64


class Selective(Strict):
    """A body with unsupported parameters. `NEUTRAL` has the values at which they change nothing and are accepted."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for param in data.keys() & cls.NEUTRAL.keys():
            if data[param] is not None and data[param] not in cls.NEUTRAL[param]:
                raise InvalidRequest(f"The parameter '{param}' is not supported here yet.", param=param)
        return {param: value for param, value in data.items() if param not in cls.NEUTRAL}


class PassingOn(Selective):
    """A body whose unknown fields and unsupported parameters are kept (`model_extra`), since there are models whose
    server may understand them. `require_known` refuses them for all other models."""

    # Those of `NEUTRAL` whose defaults another server may have set otherwise, so that it is told of all values.
    OF_SERVERS: ClassVar[dict[str, tuple[Any, ...]]] = {}

    # What /docs shows are the fields that mean something to every model.
    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})

    @model_validator(mode="before")
    @classmethod
    def _no_more_than_there_are(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > len(cls.model_fields) + EXTRA_MAX:
            unknown = next(name for name in data if name not in cls.model_fields)
            raise InvalidRequest(f"Unknown parameter: '{unknown}'.", param=unknown)
        return data

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {param: value for param, value in data.items() if not cls._is_dropped(param, value)}

    @classmethod
    def _is_dropped(cls, param: str, value: Any) -> bool:
        return cls._changes_nothing(param, value) and (value is None or param not in cls.OF_SERVERS)

    @classmethod
    def _changes_nothing(cls, param: str, value: Any) -> bool:
        return param in cls.NEUTRAL and (value is None or value in cls.NEUTRAL[param])

    @property
    def extra(self) -> dict[str, Any]:
        """The fields that no schema here knows, and that would change something here."""
        given = (self.model_extra or {}).items()
        return {param: value for param, value in given if not self._changes_nothing(param, value)}

    def require_known(self) -> None:
        """Raise InvalidRequest for the first field that no schema here knows."""
        for param in self.extra:
            if param in self.NEUTRAL:
                raise InvalidRequest(f"The parameter '{param}' is not supported here yet.", param=param)
            raise InvalidRequest(f"Unknown parameter: '{param}'.", param=param)


def _duration(written: float | str) -> float | str:
    seconds_of(written)
    return written


Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Items(16)]
Duration = Annotated[float | Annotated[str, Field(max_length=32)], AfterValidator(_duration)]
Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = Text | Tokens | Annotated[list[Text] | list[Tokens], Field(min_length=1)]


def texts_max(count: int) -> WrapValidator:
    """Bound a field of type `Texts` to `count` texts, with one error for all of them. The check is one pass over each
    list, since pydantic would try each type on each item and create an error for each failure."""

    def validated(value: Any, _: ValidatorFunctionWrapHandler) -> Any:
        if not (isinstance(value, str) and value) and not (isinstance(value, list) and value):
            raise ValueError(EXPECTED)
        texts = listed(value)
        if len(texts) > count:
            raise ValueError(f"it has {len(texts)} texts; at most {count} are allowed")
        if not (_all_texts(texts) or all(map(_are_tokens, texts))):
            raise ValueError(EXPECTED)
        return value

    return WrapValidator(validated)


EXPECTED = "a text, a list of texts, token ids or a list of such lists is expected, none of them empty"


def listed(texts: Any) -> list[Any]:
    """List the items of a `Texts`: each is a text, or token ids."""
    return [texts] if isinstance(texts, str) or isinstance(texts[0], int) else texts


def _all_texts(texts: list[Any]) -> bool:
    return set(map(type, texts)) == {str} and all(texts)


def _are_tokens(tokens: Any) -> bool:
    return isinstance(tokens, list) and set(map(type, tokens)) == {int} and min(tokens) >= 0
