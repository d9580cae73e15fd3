"""The bodies of `/v1/conversations`."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from api.schemas.base import Items, Metadata, Strict
from api.schemas.response_items import InputItem, typed

ADDED_MAX = 20
Added = Annotated[list[InputItem], Items(ADDED_MAX)]


class ConversationRequest(Strict):
    metadata: Metadata | None = None
    """Names and values kept with the conversation."""
    items: Added | None = None
    """The items that the conversation begins with."""

    @field_validator("items", mode="before")
    @classmethod
    def _each_typed(cls, items: Any) -> Any:
        return typed(items)


class ConversationUpdate(Strict):
    metadata: Metadata
    """Names and values that replace those that are kept."""


class ConversationItemsRequest(Strict):
    items: Added = Field(min_length=1)
    """The items to add."""

    @field_validator("items", mode="before")
    @classmethod
    def _each_typed(cls, items: Any) -> Any:
        return typed(items)
