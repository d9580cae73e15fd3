"""Plants bugs that the campaign or the simulation must find: `python -m bench.chaos.mutants`. A campaign that a mutant
survives proves nothing."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "workers", "shared", "cli")
SIMULATED = ("tests/__init__.py", "tests/factories.py", "tests/simulation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """`old` becomes `new` in `file`. The faults `under` must find it, or one of that many simulated `histories`."""

    name: str
    file: str
    old: str
    new: str
    under: tuple[str, ...] = ()
    histories: int = 0

    def command(self, code: Path) -> list[str]:
        """Return the arguments of the program that must fail; it runs in the folder of the code."""
        if self.histories:
            return ["tests.simulation", "0", str(self.histories - 1)]
        return ["bench.chaos", "--code", str(code), *[part for fault in self.under for part in ("--only", fault)]]


MUTANTS = [
    Mutant(
        name="no owner check in append",
        file="shared/queue/lifecycle.lua",
        old="if h[1] ~= write.claim_token or h[2] ~= 'started' then",
        new="if false then",
        under=("F2",),
    ),
    Mutant(
        name="no owner check in settle",
        file="shared/queue/lifecycle.lua",
        old="if owner ~= claim_token then return 'lost' end\n  if status ~= 'started' then",
        new="if owner == nil then return 'lost' end\n  if false then",
        under=("F2", "F17"),
    ),
    Mutant(
        name="closed before the last events are logged",
        file="shared/queue/lifecycle.lua",
        old="  local messages = {}\n  if not append_events(id, subscribers, args.first,",
        new="  local messages = {}\n  close(model, id, ending, args.iso, args.ttl_s)\n  table.remove(args.events, 1)\n"
        "  if not append_events(id, subscribers, args.first,",
        under=("F1",),
    ),
    Mutant(
        name="the end is published, never logged",
        file="shared/queue/lifecycle.lua",
        old="  close(model, id, ending, args.iso, args.ttl_s)\n  correct",
        new="  redis.call('RPOP', LOG .. id)\n  close(model, id, ending, args.iso, args.ttl_s)\n  correct",
        under=("F1",),
    ),
    Mutant(
        name="pub/sub only, the log is never read",
        file="api/serving/relay.py",
        old="        self._metrics.refills.inc(len(streams))\n",
        new="        await asyncio.sleep(RETRY_S)\n        return\n",
        under=("F9", "F8"),
    ),
    Mutant(
        name="repeats are passed on",
        file="api/serving/relay.py",
        old="            if event.seq < self.next_seq:\n                self._compare(event)\n"
        "                continue\n",
        new="",
        under=("F9", "F12"),
    ),
    Mutant(
        name="a cancel is lost",
        file="shared/queue/end.lua",
        old="if not not_ended(status) then return status or '' end\n  local messages",
        new="if status ~= 'queued' then return status or '' end\n  local messages",
        under=("F17",),
    ),
    Mutant(
        name="leases never run out",
        file="shared/queue/leases.lua",
        old="'-inf', now, 'WITHSCORES'",
        new="'-inf', 0, 'WITHSCORES'",
        under=("F1",),
    ),
    Mutant(
        name="leases by the worker's clock",
        file="shared/queue/redis_queue.py",
        old="lease_ms=self._lease_ms, held=rows",
        new="lease_ms=self._lease_ms + (time.time() - time.clock_gettime(0)) * 1000, held=rows",
        under=("F13",),
    ),
    Mutant(
        name="resumed from the start",
        file="workers/runs/generation.py",
        old="                    self.sequences[event.choice].ids.append(token)\n",
        new="",
        under=("F1",),
    ),
    Mutant(
        name="released without its log",
        file="shared/queue/leases.lua",
        old="note(job, 'released by ' .. args.worker)",
        new="redis.call('DEL', LOG .. id)",
        under=("I10",),
    ),
    Mutant(
        name="released jobs are forgotten",
        file="shared/queue/leases.lua",
        old="redis.call('ZADD', LEASES .. model, now_ms(), id)",
        new="redis.call('ZREM', LEASES .. model, id)",
        under=("F3",),
    ),
    Mutant(
        name="poison takes its neighbours along",
        file="shared/queue/lifecycle.lua",
        old="if attempt == args.attempts_max and attempt > 1 then\n    redis.call('HSET'",
        new="if false then\n    redis.call('HSET'",
        under=("F5",),
    ),
    Mutant(
        name="a key makes a new job each time",
        file="shared/queue/lifecycle.lua",
        old="if before and before.usable then",
        new="if false then",
        under=("F16",),
    ),
    Mutant(
        name="an API that wakes cancels what another one reads",
        file="shared/queue/readers.lua",
        old="redis.call('PUBSUB', 'NUMSUB', other)[2] > 0",
        new="false",
        under=("F6",),
    ),
    Mutant(
        name="errors end their stream cleanly",
        file="api/serving/respond.py",
        old="        yield error_frame(problem)\n        raise StreamBroken",
        new="        return",
        under=("F17",),
    ),
    Mutant(
        name="the queue's jobs live for ever",
        file="shared/queue/lifecycle.lua",
        old="redis.call('EXPIRE', job, status == 'failed' and ttl_s + 3600 or ttl_s)",
        new="",
        under=("F1",),
    ),
    Mutant(
        name="an outage ends the intake",
        file="workers/loop/intake.py",
        old='            await self._outage.pause("claim", error)\n            return []',
        new="            self.closed = False\n            await asyncio.Event().wait()\n            return []",
        under=("F8",),
    ),
    Mutant(
        name="nobody says that a drop has made room",
        file="workers/runners/engine_loop.py",
        old="        if (waited or self.places > places) and not self.waiting:\n            self._more_places()\n",
        new="",
        histories=1000,
    ),
    Mutant(
        name="an answer is read without a guard",
        file="workers/runners/engine_loop.py",
        old='        except Exception as error:\n                log.exception("an answer cannot be read"',
        new='        except ZeroDivisionError as error:\n                log.exception("an answer cannot be read"',
        under=("F18",),
    ),
    Mutant(
        name="a finished run may finish again",
        file="workers/runs/run.py",
        old='        assert not self.ended, "a finished run is finished"\n        self.ended = True\n',
        new="",
        histories=1000,
    ),
    Mutant(
        name="of an event's frames only the last one says where it belongs",
        file="api/formats/common.py",
        old='                yield frame[:-1] + b"id: %s\\n\\n" % str(position).encode()',
        new='                yield frame if position.frames else frame[:-1] + b"id: %s\\n\\n" % str(position).encode()',
        under=("F6b",),
    ),
    Mutant(
        name="a refused request is stored",
        file="shared/queue/lifecycle.lua",
        old="  local reason, first, second = refusal(",
        new="  write_record(record)\n  local reason, first, second = refusal(",
        under=("F19c",),
    ),
    Mutant(
        name="a wide job takes a worker's room",
        file="workers/loop/room.py",
        old="max(min(widths, left), len(wide))",
        new="sum(wide)",
        under=("F19b",),
    ),
    Mutant(
        name="tenants share what was computed",
        file="api/serving/admission.py",
        old="if self._settings.prefix_cache_shared else",
        new="if True else",
        under=("F19d",),
    ),
    Mutant(
        name="the cache knows no salt",
        file="workers/scheduling/sequence.py",
        old='self.salt = adapter.encode() + b"\\0" + salt if adapter else salt',
        new="self.salt = adapter.encode()",
        histories=200,
    ),
    Mutant(
        name="what a step without memory held is kept",
        file="workers/runners/engine_loop.py",
        old="        for sequence in stopped:\n            self._engine.free(sequence)\n",
        new="",
        histories=200,
    ),
    Mutant(
        name="a step without memory is tried again as it was",
        file="workers/scheduling/scheduler.py",
        old="max(-(-len(stopped) // 2), 1)",
        new="max(len(stopped), 1)",
        histories=200,
    ),
    Mutant(
        name="a host lets jobs wait for a model that cannot be loaded",
        file="workers/host/host_loop.py",
        old="                await self._redis.fail_jobs(standing.spec.names, reason)\n",
        new="                pass\n",
        under=("F25",),
    ),
    Mutant(
        name="a host swaps no model that has work",
        file="workers/host/turns.py",
        old="    return now - worker.since_s >= turn and waited_s >= min(turn, rules.overdue_s)\n",
        new="    return False\n",
        under=("F25",),
    ),
]


def planted(mutant: Mutant, folder: Path) -> Path:
    """Copy the code with the bug into `folder`. Raises ValueError if the bug no longer fits the code."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "models"))
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} holds the text {text.count(mutant.old)} times")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return folder


def found_by(mutant: Mutant, code: Path) -> str:
    """Run the program that must find the bug. Return what it reports, or "" if it finds nothing."""
    for name in SIMULATED if mutant.histories else ():
        (code / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, code / name)
    where = code if mutant.histories else ROOT
    done = subprocess.run(
        [sys.executable, "-m", *mutant.command(code)],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(where)},
        capture_output=True,
        text=True,
        check=False,
    )
    if mutant.histories:
        return done.stdout.splitlines()[-1] if done.returncode and done.stdout else ""
    broken = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("BROKEN")]
    return ", ".join(broken) or ("the campaign could not end" if done.returncode else "")


@click.command()
@click.option("--only", help="Plant only the mutants whose name contains this text.")
def main(only: str | None) -> None:
    """Plant each bug and let the campaign or the simulation find it. The exit status is 1 if one survives."""
    survivors = []
    for mutant in MUTANTS:
        if only and only not in mutant.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            code = planted(mutant, Path(folder))
            began = time.monotonic()
            found = found_by(mutant, code)
        click.echo(f"{mutant.name:<60} {found or 'SURVIVES':<30} {time.monotonic() - began:>4.0f} s")
        if not found:
            survivors.append(mutant.name)
    sys.exit(int(bool(survivors)))


if __name__ == "__main__":
    main()
