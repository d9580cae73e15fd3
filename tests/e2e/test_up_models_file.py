"""`penstock up --models FILE` runs a host of the file's models beside Redis and the API."""

import sys
from pathlib import Path

import httpx
import psutil

from tests.e2e.harness import eventually
from tests.e2e.test_up import Up, processes_of, refused, up

FILE = """
default = "large"
[models.small]
source = "scripted"
load = "at_start"
[models.large]
source = "scripted"
aliases = ["gpt-4o-mini"]
[routes.any]
order = ["small", "large"]
"""


def model_that_answers(base: str, name: str) -> str:
    body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    answer = httpx.post(f"{base}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    model: str = answer.json()["model"]
    return model


def test_a_model_of_a_file_is_loaded_by_the_first_request_for_it(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(FILE)
    with up(tmp_path, "--models", "models.toml") as started:
        base = f"http://127.0.0.1:{started.port}"

        def workers() -> list[str]:
            return [each for each in processes_of(tmp_path) if " worker " in each]

        assert '"model": "large"' in started.said
        eventually("the model of the start", lambda: len(workers()) == 1, seconds=30)
        assert model_that_answers(base, "any") == "small"
        assert model_that_answers(base, "gpt-4o-mini") == "large"
        assert len(workers()) == 2
        (host,) = [each for each in psutil.Process(started.popen.pid).children() if "host" in each.cmdline()]
        assert str(tmp_path / "models.toml") in " ".join(host.cmdline())

        assert started.interrupt() == 0
    assert processes_of(tmp_path) == []


def test_every_name_of_a_file_is_known_when_the_api_is_ready_and_edits_are_told(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(FILE)
    started = Up(tmp_path, "--models", "models.toml")
    seen: dict[str, int] = {}

    def asked() -> bool:
        """Ask for each name as soon as the API answers; a model that loads is waited for."""
        for name in ("small", "gpt-4o-mini", "any", ""):
            body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
            try:
                answer = httpx.post(f"http://127.0.0.1:{started.port}/v1/chat/completions", json=body, timeout=60)
            except httpx.ConnectError:
                return False
            if answer.status_code == 503 and name not in seen:  # Redis is not there yet
                return False
            seen.setdefault(name, answer.status_code)
        return True

    try:
        eventually("the API answers", asked, seconds=30)
        assert set(seen.values()) == {200}
        eventually("it is ready", started.ready, seconds=30)
        (tmp_path / "models.toml").write_text("[models.small]\nsorce = 1\n")
        eventually("the error is told", lambda: "line 2: models.small.sorce" in started.said, seconds=20)
        doctor = started.shell(f"{sys.executable} -m cli doctor || true")
        assert "goes on with what it read before" in doctor
        assert "models.small.sorce" in doctor
        (tmp_path / "models.toml").write_text(FILE + '[models.third]\nsource = "scripted"\n')
        eventually("the change is told", lambda: "again: model added: third" in started.said, seconds=20)
    finally:
        started.interrupt()


def test_a_file_that_is_wrong_or_says_what_options_say_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text("[models.a]\nsorce = 1\n")

    assert "models.toml, line 2: models.a.sorce: there is no such key" in refused(tmp_path, "--models", "models.toml")
    assert "models.a.sorce" in refused(tmp_path, PENSTOCK_MODELS="models.toml")
    assert processes_of(tmp_path) == []
