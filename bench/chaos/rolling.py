"""`python -m bench.chaos.rolling` replaces every process of a site under load, one by one, by the next version, then
goes back, then forward again. It is judged like any fault: no token may be lost, and no request may fail."""

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from bench.chaos.__main__ import ROOT, SETTINGS, WARM_S, watch_rq
from bench.chaos.judge import Mercy, Verdict, judge, pause_across, percentile
from bench.chaos.load import Load
from bench.chaos.site import Site, WorkerGroup

# The last release, from which people upgrade. Change it with each release.
PREVIOUS = "730252ead21ec2dc2b74e964f5b8132e7933c9f9"  # 0.2.0
CLIENTS = 24
TOKENS = 100
STOP_S = 20.0


def checked_out(revision: str, folder: Path) -> Path:
    """Check out the packages of a revision. Raises CalledProcessError if the history does not have it."""
    folder.mkdir(parents=True)
    packed = subprocess.run(
        ["git", "archive", revision, "api", "workers", "shared", "cli"],  # noqa: S607
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=packed, check=True)  # noqa: S607
    return folder


async def rolling(folder: Path, versions: list[Path], *, seed: int) -> Verdict:
    """Start the first version, then upgrade through the others. `versions` are folders of code."""
    first, *others = versions
    site = Site(folder, first, groups=[WorkerGroup(model="scripted", count=2)], settings=SETTINGS)
    verdict = Verdict()
    try:
        await site.start()
        bases = {base: first for _, base in site.apis}
        load = Load(site, seed=seed, clients=CLIENTS, tokens=TOKENS)
        load.start()
        watching = asyncio.create_task(watch_rq(site, verdict))
        rolls = []
        for version in others:
            await asyncio.sleep(WARM_S)
            began = asyncio.get_running_loop().time()
            await replace_all(site, version)
            bases |= {base: version for _, base in site.apis if base not in bases}
            rolls.append((began, asyncio.get_running_loop().time()))
        await asyncio.sleep(WARM_S)
        await load.ended()
        watching.cancel()
        for story in load.stories:
            story.wrongs = [wrong for wrong in story.wrongs if not _known_flaw(wrong, bases, first)]
        verdict.add(await asyncio.to_thread(judge, site, load.stories, Mercy()))
        verdict.hit = len(load.stories)
        for began, ended in rolls:
            pauses = [pause_across(story, began, ended) for story in load.stories]
            verdict.pauses.setdefault("rolled", []).extend(pause.seconds for pause in pauses if pause)
    finally:
        await site.stop()
    return verdict


def _known_flaw(wrong: str, bases: dict[str, Path], before: Path) -> bool:
    """Recognise a flaw of 0.1.0: a stopping API answers non-streaming requests with 500, not with 503."""
    return "Internal Server Error" in wrong and bases.get(wrong.rpartition(" ")[2]) == before


async def replace_all(site: Site, version: Path) -> None:
    """Replace the workers first, each as it stops; then replace each API once another one is ready."""
    site.code = version
    for worker in site.live_workers():
        worker.send(signal.SIGTERM)
        await site.until(lambda worker=worker: not worker.alive, "a worker stops", seconds=STOP_S)
        await site.staffed()
    for api, base in list(site.apis):
        if api.alive:
            await site.add_api()
            api.send(signal.SIGTERM)
            await site.until(lambda api=api: not api.alive, f"{base} stops", seconds=60)


@click.command()
@click.option("--before", default=PREVIOUS, show_default=True, help="Git revision to upgrade from.")
@click.option("--seed", type=int, default=2026, show_default=True)
def main(before: str, seed: int) -> None:
    """Upgrade a site under load and judge the result. The exit status is 1 if an invariant does not hold."""
    folder = Path(tempfile.mkdtemp(prefix="rolling-"))
    old = checked_out(before, folder / "before")
    verdict = asyncio.run(rolling(folder / "site", [old, ROOT, old, ROOT], seed=seed))
    pauses = verdict.pauses["rolled"]
    click.echo(f"{verdict.stories} stories, {verdict.tokens} tokens, ends {verdict.ends}")
    click.echo(
        f"longest pause of {len(pauses)} streams: p50 {percentile(pauses, 0.5):.2f} s, p99 "
        f"{percentile(pauses, 0.99):.2f} s"
    )
    for invariant, found in verdict.violations.items():
        click.echo(f"{invariant}: {len(found)}, like {found[0]}")
    if not verdict.violations:
        shutil.rmtree(folder)
    sys.exit(int(bool(verdict.violations)))


if __name__ == "__main__":
    main()
