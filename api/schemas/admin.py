"""The bodies of `/admin`."""

from pydantic import Field

from api.schemas.base import Strict


class ReplayRequest(Strict):
    """`since_s`: failed within so many seconds; `error`: a word of the failure's code or text; `rate_per_s`: jobs
    replayed a second, 0 for no limit. At least one of the four filters must be given, so that nobody replays
    everything by mistake; `model: "*"` says everything."""

    model: str = Field(min_length=1)
    since_s: float | None = Field(None, gt=0)
    error: str | None = Field(None, min_length=1)
    tenant: str | None = Field(None, min_length=1)
    rate_per_s: float = Field(0, ge=0, le=1000)
    dry_run: bool = False
