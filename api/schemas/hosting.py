"""The bodies of `/admin/models`: what an operator orders of the hosts that have a model."""

from typing import Literal

from pydantic import Field

from api.schemas.base import Duration, Strict
from shared.domain.durations import seconds_of
from shared.domain.hosting import When

WAIT_MAX_S = 300


class ModelOrder(Strict):
    """An order for a model."""

    host: str = Field(default="", max_length=256)
    """Only this host, by its id or its hostname."""
    wait_s: float = Field(default=0, ge=0, le=WAIT_MAX_S)
    """How long the answer waits for the order to be carried out, in seconds. The order is carried out in any case."""


class UnloadOrder(ModelOrder):
    """An order to unload a model."""

    when: Literal["idle", "running", "now"] = "idle"
    """`idle`: once the model has no work. `running`: after its running jobs, while no others start. `now`: its running
    jobs go back into the queue, and go on where they were when the model is loaded again."""

    @property
    def unload_when(self) -> When:
        return When(self.when)


class SwitchOrder(UnloadOrder):
    """An order to unload one model and load another one in its place."""

    from_: str = Field(alias="from", min_length=1, max_length=200)
    """The model to unload."""
    to: str = Field(min_length=1, max_length=200)
    """The model to load."""
    when: Literal["idle", "running", "now"] = "running"
    """When the first model is unloaded, as of an unload."""


class KeepOrder(ModelOrder):
    """An order to keep a model loaded."""

    for_: Duration = Field(alias="for")
    """How long, in seconds or as a text like `30m` or `forever`; 0 ends the keeping."""

    @property
    def for_s(self) -> float:
        return seconds_of(self.for_)
