"""A window of the day is open in its time zone, over midnight and over the changes of summer time."""

from datetime import datetime

import pytest

from shared.domain.daily_window import daily_window


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("window", "now", "wait_s"),
    [
        ("22:00-06:00 Europe/Berlin", "2026-11-25T20:00:00Z", 3600),
        ("22:00-06:00 Europe/Berlin", "2026-11-25T21:00:00Z", 0),
        ("22:00-06:00 Europe/Berlin", "2026-11-26T04:59:59Z", 0),
        ("22:00-06:00 Europe/Berlin", "2026-11-26T05:00:00Z", 16 * 3600),
        ("22:00-06:00 Europe/Berlin", "2026-07-01T20:00:00Z", 0),  # summer time
        ("02:00-04:00", "2026-11-25T01:59:30Z", 30),
        ("02:00-04:00", "2026-11-25T04:00:00Z", 22 * 3600),
        ("12:00-13:00 Europe/Berlin", "2026-10-24T13:00:00Z", 22 * 3600),  # a day of 25 hours
    ],
)
def test_a_window_says_when_it_opens(window: str, now: str, wait_s: float) -> None:
    found = daily_window(window)

    assert found is not None
    assert found.wait_s(at(now)) == wait_s


@pytest.mark.parametrize("text", ["22-6", "22:00-22:00", "24:00-06:00", "22:00-06:00 Mars/Olympus", "night"])
def test_any_other_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"22|Mars|night|24"):
        daily_window(text)


def test_no_window_is_always_open() -> None:
    assert daily_window("") is None
