"""What all request bodies have in common: no field is unknown, no value is bent into another type."""

from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from shared.errors import InvalidRequest


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Selective(Strict):
    """`NEUTRAL`: parameters that are not supported, and the values at which they change nothing, so that they can be
    accepted."""

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


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = Text | Tokens | Annotated[list[Text] | list[Tokens], Field(min_length=1)]


def texts_max(count: int) -> WrapValidator:
    """For a field of type `Texts`: at most so many, and one reason for whatever is wrong with them."""

    def validated(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            texts = validate(value)
        except ValidationError:
            raise ValueError(
                "a text, a list of texts, token ids or a list of such lists is expected, none of them empty"
            ) from None
        if len(listed(texts)) > count:
            raise ValueError(f"at most {count} of them")
        return texts

    return WrapValidator(validated)


def listed(texts: Texts) -> list[str | list[int]]:
    """Each a text, or token ids."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts[0], int):
        return [[token for token in texts if isinstance(token, int)]]
    return [item for item in texts if not isinstance(item, int)]
