"""Fields by which other servers of open models extend OpenAI's API: what they ask for is done, or known to change
nothing, or refused by name."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from api.schemas.base import Items, PassingOn, Strict, Text
from shared.domain.errors import InvalidRequest

CHOICES_MAX = 1000
WORDS_MAX = 128
ALLOWED_MAX = 4096
Schema = dict[str, Any] | str


class Form(NamedTuple):
    """A form of the answer, with the parameter that asks for it. `kind` is json, regex, choice or grammar."""

    param: str
    kind: str
    value: Any


class StructuredOutputs(Strict):
    """The form of the answer as vLLM's extension defines it. Exactly one field must be given."""

    json_: Schema | None = Field(None, alias="json")
    """A JSON schema, as an object or as text."""
    regex: str | None = Field(None, min_length=1)
    """A regular expression that matches the whole answer."""
    choice: Annotated[list[Text], Items(CHOICES_MAX, least=1)] | None = None
    """The texts of which the answer must be one."""
    grammar: str | None = Field(None, min_length=1)
    """A grammar in Lark, or in llama.cpp's GBNF."""

    @model_validator(mode="after")
    def _one_of_them(self) -> "StructuredOutputs":
        if sum(value is not None for value in (self.json_, self.regex, self.choice, self.grammar)) != 1:
            raise ValueError("exactly one of json, regex, choice and grammar must be given")
        return self


class TypedGrammar(Strict):
    """The form of the answer, as TGI writes it."""

    type: Literal["json", "json_object", "json_schema", "regex"]
    """What `value` is: a JSON schema or a regular expression."""
    value: Schema
    """The schema, or the expression."""


# Values at which parameters of other servers change nothing here.
OF_VLLM: dict[str, tuple[Any, ...]] = {
    "early_stopping": (False,),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True, False),  # a matter of tokenizers that write such spaces
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}
OF_SGLANG: dict[str, tuple[Any, ...]] = {
    "custom_logit_processor": (),
    "lora_path": (),
    "return_hidden_states": (False,),
    "separate_reasoning": (True,),
    "session_params": (),
    "stream_reasoning": (True,),
}
OF_LLAMACPP: dict[str, tuple[Any, ...]] = {
    "cache_prompt": (True, False),  # the prefix cache changes no answer
    "dry_allowed_length": (2,),
    "dry_base": (1.75,),
    "dry_multiplier": (0,),
    "dry_penalty_last_n": (-1, 0),
    "dynatemp_exponent": (1,),
    "dynatemp_range": (0,),
    "id_slot": (-1,),
    "lora": ([],),
    "min_keep": (0,),
    "mirostat": (0,),
    "mirostat_eta": (0.1,),
    "mirostat_tau": (5,),
    "n_keep": (0,),
    "n_probs": (0,),
    "parse_tool_calls": (True,),
    "post_sampling_probs": (False,),
    "reasoning_format": ("auto", "deepseek", "parsed"),
    "reasoning_in_content": (False,),
    "repeat_last_n": (-1,),
    "return_progress": (False,),
    "return_tokens": (False,),
    "samplers": (),
    "t_max_predict_ms": (-1, 0),
    "tfs_z": (1,),
    "thinking_forced_open": (False,),
    "timings_per_token": (False,),
    "top_n_sigma": (-1,),
    "typical_p": (1,),
    "xtc_probability": (0,),
    "xtc_threshold": (0.1,),
}
OF_TGI: dict[str, tuple[Any, ...]] = {
    "adapter_id": (),
    "decoder_input_details": (False,),
    "details": (False,),
    "return_full_text": (False,),
    "watermark": (False,),
}
OF_OTHERS: dict[str, tuple[Any, ...]] = {
    "safe_prompt": (False,),
}
NO_OPS = OF_VLLM | OF_SGLANG | OF_LLAMACPP | OF_TGI | OF_OTHERS


class ExtendedRequest(PassingOn):
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = NO_OPS
    OF_SERVERS: ClassVar[dict[str, tuple[Any, ...]]] = NO_OPS
    FORMS: ClassVar[dict[str, str]] = {
        "guided_json": "json",
        "guided_regex": "regex",
        "guided_choice": "choice",
        "guided_grammar": "grammar",
        "json_schema": "json",
        "regex": "regex",
        "ebnf": "grammar",
        "grammar": "grammar",
    }

    SENT_ON: ClassVar[tuple[str, ...]] = (
        "guided_decoding_backend",
        "include_stop_str_in_output",
        "no_stop_trim",
        "skip_special_tokens",
        "bad_words",
        "allowed_token_ids",
    )

    structured_outputs: StructuredOutputs | None = None
    """The form that the answer must have, as vLLM's extension."""
    guided_json: Schema | None = None
    """A JSON schema for the answer, as earlier releases of vLLM called it."""
    guided_regex: str | None = Field(None, min_length=1)
    """A regular expression that matches the whole answer, as earlier releases of vLLM called it."""
    guided_choice: Annotated[list[Text], Items(CHOICES_MAX, least=1)] | None = None
    """The texts of which the answer must be one, as earlier releases of vLLM called them."""
    guided_grammar: str | None = Field(None, min_length=1)
    """A grammar of the answer in Lark or GBNF, as earlier releases of vLLM called it."""
    guided_decoding_backend: str | None = Field(None, max_length=100, exclude=True)
    """Accepted; every form is kept by the same code."""
    json_schema: Schema | None = None
    """A JSON schema for the answer, as SGLang and llama.cpp call it."""
    regex: str | None = Field(None, min_length=1)
    """A regular expression that matches the whole answer, as SGLang calls it."""
    ebnf: str | None = Field(None, min_length=1)
    """A grammar of the answer in GBNF or Lark, as SGLang calls it."""
    grammar: Annotated[str, Field(min_length=1)] | TypedGrammar | None = None
    """A grammar of the answer in GBNF or Lark, as llama.cpp calls it, or TGI's object with a type and a value."""
    include_stop_str_in_output: bool | None = None
    """Let the answer end with the stop string or the token that ended it."""
    no_stop_trim: bool | None = None
    """The same, as SGLang calls it."""
    skip_special_tokens: bool | None = None
    """False shows special tokens in the answer. Default: true."""
    bad_words: Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Items(WORDS_MAX)] | None = None
    """Words that the answer must not have."""
    allowed_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Items(ALLOWED_MAX, least=1)] | None = None
    """The only tokens that the answer may have; ends of an answer among them, if it shall end by one."""
    repeat_penalty: float | None = Field(None, gt=0, le=10)
    """The same as `repetition_penalty`, as llama.cpp and Ollama call it."""

    @property
    def forms(self) -> Iterator[Form]:
        """Yield the forms that the request asks for beside `response_format`."""
        if wanted := self.structured_outputs:
            fields = {"json": wanted.json_, "regex": wanted.regex, "choice": wanted.choice, "grammar": wanted.grammar}
            for kind, value in fields.items():
                if value is not None:
                    yield Form(f"structured_outputs.{kind}", kind, value)
        for param, kind in self.FORMS.items():
            match getattr(self, param):
                case None:
                    continue
                case TypedGrammar(type=type_, value=value):
                    yield Form(f"{param}.value", "regex" if type_ == "regex" else "json", value)
                case value:
                    yield Form(param, kind, value)

    def as_sent(self) -> dict[str, Any]:
        """Return the fields that another server may understand better than their translation, as they were sent."""
        given = {param: getattr(self, param) for param in (*self.FORMS, *self.SENT_ON)}
        dumped = {name: value.model_dump() if isinstance(value, Strict) else value for name, value in given.items()}
        return {name: value for name, value in dumped.items() if value is not None}

    @model_validator(mode="after")
    def _one_penalty(self) -> "ExtendedRequest":
        given = getattr(self, "repetition_penalty", None)
        if self.repeat_penalty is not None and given not in (None, self.repeat_penalty):
            message = "'repeat_penalty' and 'repetition_penalty' are the same, and must not differ."
            raise InvalidRequest(message, param="repeat_penalty")
        return self
