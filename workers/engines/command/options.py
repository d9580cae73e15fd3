"""The options of the command engine: those of the upstream engine, and how its server is started."""

import shlex

from pydantic import Field, field_validator

from workers.engines.upstream.options import UpstreamOptions

PORT = "${PORT}"


class CommandOptions(UpstreamOptions):
    """`run` is the server's command line, in which `${PORT}` stands for the port that it must listen on; no shell reads
    it. The path `ready` answers with 200 once the server takes requests, which must be so within `start_s`, and it may
    be without such an answer for `health_s` afterwards. `stop_s` is how long it may take to end."""

    run: str = Field(min_length=1, max_length=10_000)
    ready: str = Field("/health", pattern="^/[^\\s]*$", max_length=1000)
    start_s: float = Field(600, gt=0, le=86_400)
    health_s: float = Field(60, gt=0, le=86_400)
    stop_s: float = Field(10, ge=0, le=600)

    @field_validator("run")
    @classmethod
    def _has_port(cls, run: str) -> str:
        try:
            words = shlex.split(run)
        except ValueError as error:
            raise ValueError(f"it cannot be split into words: {error}") from error
        if not any(PORT in word for word in words):
            raise ValueError(f"it must have {PORT}, where the server's port is put in")
        return run

    def words(self, port: int) -> list[str]:
        return [word.replace(PORT, str(port)) for word in shlex.split(self.run)]
