"""Option types for ages (`15m`), periods (`1h30m`, `forever`) and rates (`5/s`)."""

import re

import click

from shared.domain.durations import seconds_of

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Age(click.ParamType[float]):
    """A time such as 90s, 15m, 2h or 3d, converted to seconds."""

    name = "age"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value)
        if not found:
            self.fail(f"{value!r} is not a time like 90s, 15m, 2h or 3d", param, ctx)
        return float(found[1]) * UNITS[found[2]]


class Period(click.ParamType[float]):
    """A time such as 30s, 10m, 1h30m or forever, or a number of seconds, converted to seconds."""

    name = "period"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return seconds_of(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


class Rate(click.ParamType[float]):
    """A rate such as 5/s or 30/m, converted to a number per second. 0 means no limit."""

    name = "rate"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)/([sm])", value)
        if value != "0" and not found:
            self.fail(f"{value!r} is not a rate like 5/s or 30/m", param, ctx)
        return float(found[1]) / UNITS[found[2]] if found else 0.0
