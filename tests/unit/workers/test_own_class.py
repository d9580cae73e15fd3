"""Finding and opening engines that are somebody else's."""

import sys
import threading
from pathlib import Path

import pytest

from penstock.driver import Driver
from penstock.testing import RunnerConformance
from penstock.tokens import (
    Batch,
    EngineBroken,
    EngineLimits,
    Loaded,
    ModelSpec,
    Sampled,
    Settings,
    SettingsError,
    SingleThread,
    infos_of,
    stepped,
)
from shared.settings import load_settings
from workers.engines.scripted import VOCABULARY, ScriptedEngine
from workers.loading.loaded import load
from workers.loading.model_spec import parse_specs

BOT = """
from penstock.engines import ChatSource

class Bot(ChatSource):
    def chat(self, request):
        yield "hello"

class Idle(ChatSource):
    pass

class Unsure(Bot):
    resume = "sometimes"

class Gifted(Bot):
    abilities = frozenset({"tools", "telepathy"})

class Closed(Bot):
    async def open(self):
        raise OSError("the door is shut")

def nothing(spec, settings, thread):
    return None
"""


async def loaded(engine: str) -> Loaded:
    (spec,) = parse_specs(["m,alias=m"], engine=engine)
    model = await load(spec, load_settings())
    model.close()
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a module that no other test imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "bot_of_test", raising=False)
    (tmp_path / "bot_of_test.py").write_text(BOT)
    return tmp_path


async def test_a_class_in_the_working_directory_is_found(folder: Path) -> None:
    model = await loaded("bot_of_test:Bot")

    assert [info.name for info in model.infos] == ["m", "alias"]
    assert (model.infos[0].capabilities, model.infos[0].resume) == (("chat",), "restart")


async def test_an_entry_point_names_a_class(folder: Path) -> None:
    about = folder / "bot_of_test-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bot-of-test\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[penstock.engines]\nbot = bot_of_test:Bot\n")
    sys.path.insert(0, str(folder))

    model = await loaded("bot")

    assert model.infos[0].engine == "custom"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Idle", "defines none of chat, complete, embed and rerank"),
        ("Unsure", "has resume 'sometimes'; there are exact, repeat, prefill, restart"),
        ("Gifted", "has the ability 'telepathy'"),
        ("Closed", "cannot be opened: OSError: the door is shut"),
        ("nothing", "no function that returns a Loaded"),
        ("Nobody", "cannot be imported: AttributeError"),
    ],
)
async def test_a_class_that_cannot_serve_is_refused(folder: Path, name: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        await loaded(f"bot_of_test:{name}")


async def test_an_unknown_engine_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(SettingsError, match=r"there is no engine 'torhc'; .*, and your own, PACKAGE"):
        await loaded("torhc")


class Breakable(ScriptedEngine):
    broken = threading.Event()

    def step(self, batch: Batch) -> list[Sampled]:
        if self.broken.is_set():
            raise EngineBroken("the device is gone")
        return super().step(batch)


def load_scripted(spec: ModelSpec, settings: Settings, thread: SingleThread) -> Loaded:
    """An engine of tokens, as somebody else would bring it."""
    limits = EngineLimits(sequences_max=4, batch_tokens_max=64, context_length=1000, vocabulary=VOCABULARY, blocks=0)
    engine = Breakable(limits=limits, step_ms=1, tokens=20)
    return stepped(infos_of(spec, engine), engine, thread)


class TestEngineOfTokens(RunnerConformance):
    engine = f"{__name__}:load_scripted"

    def break_engine(self, driver: Driver) -> None:
        """Break it, and no other that is loaded later."""
        Breakable.broken.set()
        assert driver.eventually(lambda: not driver.runner.alive(step_timeout_s=60))
        Breakable.broken.clear()
