"""What all request bodies have in common: no field is unknown, no value is bent into another type."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
