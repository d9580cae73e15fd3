"""The campaign detects violations, and its planted bugs still fit the code."""

import asyncio
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from bench.chaos.act import Act
from bench.chaos.judge import Mercy, Verdict, _ended_badly, _ended_late, orphans, pause_across, percentile
from bench.chaos.load import right_answer, wrong_texts
from bench.chaos.mutants import MUTANTS, Mutant, planted
from bench.chaos.proxy import Proxy
from bench.chaos.report import bars
from bench.chaos.scenarios import SCENARIOS
from bench.chaos.story import Story, Way


def story(text: str = "", *, tokens: int = 5, way: Way = Way.PLAIN, ends: tuple[str, ...] = ()) -> Story:
    told = Story(name="s", way=way, content="question", tokens=tokens, ends=list(ends))
    told.texts = {0: [(float(at), f" {word}") for at, word in enumerate(text.split())]}
    return told


def test_the_planted_bugs_are_looked_for_where_there_are_faults() -> None:
    names = {scenario.name for scenario in SCENARIOS}

    assert all(mutant.histories or (mutant.under and names.issuperset(mutant.under)) for mutant in MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_planted_bug_still_fits_the_code(mutant: Mutant, tmp_path: Path) -> None:
    code = planted(mutant, tmp_path)

    assert mutant.new in (code / mutant.file).read_text(encoding="utf-8")


def test_there_are_enough_planted_bugs() -> None:
    assert len({mutant.name for mutant in MUTANTS}) >= 12


def test_a_wrong_a_missing_and_a_doubled_token_are_seen() -> None:
    words = right_answer("question", 5).split()
    right, missing, doubled = " ".join(words), " ".join(words[:2] + words[3:]), " ".join(words[:2] + words[1:])

    complete = story(right, ends=("done",))
    complete.finishes = {0: "length"}
    assert list(wrong_texts(complete)) == []
    assert list(wrong_texts(story(" ".join(words[:3])))) == []
    for wrong in (missing, doubled, right + " t1"):
        assert list(wrong_texts(story(wrong)))
    assert list(wrong_texts(story(missing[:-8], ends=("done",))))  # complete, and too short


def test_silence_and_bad_ends_are_seen() -> None:
    twice, quiet = story(ends=("done", "done")), story()
    quiet.clean_nothing = 1
    silent = story()
    silent.problem = "silence"
    failed = story(ends=("error:engine_error",))

    assert list(_ended_badly(twice))
    assert list(_ended_badly(quiet))
    assert list(_ended_late(silent, Mercy()))
    assert list(_ended_late(failed, Mercy()))
    assert not list(_ended_late(failed, Mercy(failures=frozenset({"engine_error"}))))


def test_a_pause_counts_from_the_fault_on() -> None:
    told = story("a b c")
    told.texts = {0: [(0.0, "a"), (1.0, "b"), (6.0, "c")]}

    pause = pause_across(told, 2.0, 3.0)
    assert pause
    assert pause.seconds == 4.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0


def test_a_pause_across_two_faults_is_none_of_the_first() -> None:
    told = story()
    times = (0.0, 1.0, 6.0, 7.0, 9.0, 9.125, 11.5)
    told.job_id, told.texts = "chatcmpl-1", {0: [(at, "a") for at in times]}
    load: Any = SimpleNamespace(stories=[told])
    act = Act(site=None, load=load, rng=Random(0), rounds=1, long=False)  # type: ignore[arg-type]
    act.strikes = [(1.5, {told.job_id}), (4.0, {told.job_id}), (6.5, {told.job_id}), (9.25, {told.job_id})]
    for begin, jobs in act.strikes:
        act.mark("killed", begin, 8, jobs)

    verdict = Verdict()
    act.measure(verdict)

    assert verdict.pauses == {"killed, its successor too": [4.5], "killed": [2.0, 2.0, 2.25]}
    assert verdict.hit == 1


async def test_a_worker_that_claims_none_of_many_jobs_is_seen() -> None:
    class Site:
        """A site of two workers, of which one gets every job."""

        models = ("scripted",)
        client = SimpleNamespace(hget=lambda key, field: "busy")

        def worker_names(self) -> set[str]:
            return {"busy", "asleep"}

        def places(self, model: str) -> int:
            return 4

        async def staffed(self) -> None:
            pass

    class Load:
        def story(self, way: Way, *, model: str, tokens: int) -> Story:
            return Story(name="s", way=way, content="question", tokens=tokens, job_id="chatcmpl-1")

        def add(self, story: Story) -> asyncio.Task[None]:
            return asyncio.create_task(asyncio.sleep(0))

    act = Act(site=Site(), load=Load(), rng=Random(0), rounds=1, long=False)  # type: ignore[arg-type]

    await act.muster()

    assert [invariant for invariant, _ in act.wrongs] == ["I14"]
    assert "asleep" in act.wrongs[0][1]


def test_what_is_kept_of_a_request_that_was_refused_is_seen() -> None:
    kept = ["penstock:chat:chatcmpl-1", "penstock:chat:chatcmpl-2", "penstock:log:chatcmpl-1"]
    client = SimpleNamespace(scan_iter=lambda pattern, count: [key for key in kept if key.startswith(pattern[:-1])])

    found = list(orphans(SimpleNamespace(client=client), {"chatcmpl-1"}))  # type: ignore[arg-type]

    assert found == ["penstock:chat:chatcmpl-2 is kept of no job"]


async def test_the_network_that_is_broken_delivers_what_was_sent() -> None:
    sent = bytes(range(256)) * 200

    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        writer.close()

    server = await asyncio.start_server(send, "127.0.0.1", 0)
    proxy = Proxy("127.0.0.1", server.sockets[0].getsockname()[1])
    await proxy.start()
    proxy.split = True
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    first = await reader.read(100)
    proxy.split = False  # while a frame is under way

    assert first + await reader.read() == sent

    writer.close()
    await proxy.stop()
    server.close()


def test_a_short_campaign_judges_what_it_counts_and_not_what_it_samples() -> None:
    total = Verdict(ratios={"tokens computed for each that is kept": 1.1, "p99 TTFT after overload": 9.0})

    said = bars(total, seconds=20, seed=1, release=False)

    assert total.violations.keys() == {"I10"}
    assert "BROKEN  I10" in said
