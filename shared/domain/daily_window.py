"""A part of each day, such as the night, in a time zone. Pure."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

FORM = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)(?: (\S+))?")


@dataclass(frozen=True, slots=True)
class DailyWindow:
    """The time from `begin` to `end` by the clocks of `zone`; it goes past midnight if `end` is before `begin`."""

    begin: time
    end: time
    zone: ZoneInfo

    def wait_s(self, now_s: float) -> float:
        """Return the seconds from a Unix time until the window is open; 0 inside of it."""
        now = datetime.fromtimestamp(now_s, self.zone)
        clock = now.time()
        night = self.end <= self.begin
        if (clock >= self.begin or clock < self.end) if night else self.begin <= clock < self.end:
            return 0.0
        today = datetime.combine(now.date(), self.begin, self.zone)
        opens = today if clock < self.begin else datetime.combine(now.date() + timedelta(days=1), self.begin, self.zone)
        return max((opens.astimezone(UTC) - now.astimezone(UTC)).total_seconds(), 0.001)


def daily_window(text: str) -> DailyWindow | None:
    """Read a window like `22:00-06:00 Europe/Berlin`; the zone is UTC if there is none. Return None for an empty text.
    Raises ValueError."""
    if not text.strip():
        return None
    found = FORM.fullmatch(text.strip())
    if not found or found[1] + found[2] == found[3] + found[4]:
        raise ValueError(f"{text!r} is not a window like '22:00-06:00 Europe/Berlin'")
    try:
        zone = ZoneInfo(found[5] or "UTC")
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"{found[5]!r} is not a time zone that this machine knows") from error
    return DailyWindow(time(int(found[1]), int(found[2])), time(int(found[3]), int(found[4])), zone)
