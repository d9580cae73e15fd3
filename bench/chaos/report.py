"""Formats verdicts. `python -m bench.chaos.report FILE` prints a verdict that `--out` wrote as tables."""

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis

from bench.chaos.judge import Verdict, median, percentile
from bench.chaos.site import Site

INVARIANTS = {
    "I1": "every accepted job reaches exactly one terminal state",
    "I2": "clients read the right answer's beginning, and all of it when it is complete",
    "I3": "exactly one terminal event, never a clean end without one",
    "I4": "result or typed error within the deadline",
    "I5": "pauses within their bars",
    "I6": "nothing is left once it is quiet",
    "I7": "failed jobs keep their reason and their links",
    "I8": "nobody but its owner writes a log",
    "I9": "neither a flood nor an overload moves others' waits for long",
    "I10": "next to nothing is computed twice",
    "I11": "no request stops a process for others",
    "I12": "no tenant learns of another's content",
    "I13": "what is refused leaves nothing behind",
    "I14": "a worker that says it accepts does accept, after every fault",
    "RQ": "`rq info` tells the truth",
}
RATIOS = {  # name: (invariant, bar)
    "p99 TTFT of others in a flood": ("I9", 1.2),
    "p99 TTFT after overload": ("I9", 2.0),
    "tokens computed for each that is kept": ("I10", 1.02),
    "p99 TTFT of others beside wide jobs": ("I11", 1.2),
}
COUNTED = {"I10"}  # the ratio of all tokens, which is no sample
BARS_S = {"worker killed": 5.0, "worker told to stop": 0.5, "redis is back": 2.0}


def summary(name: str, what: str, verdict: Verdict, seconds: float) -> str:
    found = ", ".join(f"{invariant}: {len(texts)}" for invariant, texts in verdict.violations.items()) or "all hold"
    pauses = "".join(
        f"  {kind}: p50 {median(values):.2f} s, p99 {percentile(values, 0.99):.2f} s of {len(values)}"
        for kind, values in verdict.pauses.items()
    )
    ends = ", ".join(f"{end} {count}" for end, count in sorted(verdict.ends.items()))
    return (
        f"{name:<5} {what:<45} {verdict.jobs:>5} jobs {verdict.hit:>5} hit {verdict.tokens:>8} tokens "
        f"{seconds:>5.0f} s  {found}\n      {ends}{pauses}"
    )


def bars(total: Verdict, *, seconds: float, seed: int, release: bool) -> str:
    """Format the table of invariants. Samples of times count in the long form only: a few of them prove nothing."""
    for name, ratio in total.ratios.items():
        invariant, bar = RATIOS[name]
        if ratio > bar and (release or invariant in COUNTED):
            total.blame(invariant, [f"{name}: {ratio:.3f}, bar {bar}"])
    for kind, bar in BARS_S.items():
        values = total.pauses.get(kind, [])
        if release and values and percentile(values, 0.99) > bar:
            total.blame("I5", [f"{kind}: p99 {percentile(values, 0.99):.2f} s, bar {bar} s"])
    lines = [
        f"\n{total.stories} stories, {total.jobs} jobs, {total.hit} hit by a fault, {total.tokens} tokens read, "
        f"{seconds / 60:.1f} minutes, seed {seed}"
    ]
    for invariant, what in INVARIANTS.items():
        found = total.violations.get(invariant, [])
        lines.append(f"{'holds ' if not found else 'BROKEN'}  {invariant}  {what}")
        lines += [f"          {text}" for text in found[:10]]
    for kind, values in total.pauses.items():
        p50, p99 = median(values), percentile(values, 0.99)
        lines.append(f"pause, {kind}: p50 {p50:.2f} s, p99 {p99:.2f} s, longest {max(values, default=0):.2f} s")
    lines += [f"ratio, {name}: {ratio:.3f}, bar {RATIOS[name][1]}" for name, ratio in total.ratios.items()]
    return "\n".join(lines)


def timeline(site: Site, text: str) -> str:
    """Format a violation with the history of its job."""
    lines = [f"  ! {text}"]
    for job_id in re.findall(r"chatcmpl-[0-9a-f]+", text)[:1]:
        try:
            told = str(site.client.hget(f"rq:job:{job_id}", "timeline") or "")
        except redis.RedisError:
            continue
        for line in told.splitlines():
            at, _, what = line.partition(" ")
            lines.append(f"      {datetime.fromtimestamp(int(at) / 1000, UTC):%H:%M:%S.%f} {what}")
    return "\n".join(lines)


def markdown(told: dict[str, Any]) -> str:
    """Format the tables of bench/README.md."""
    lines = ["| fault | jobs | hit | tokens read | ends | violations |", "|---|---|---|---|---|---|"]
    for name, verdict in [*told["faults"].items(), ("all", told["total"])]:
        ends = ", ".join(f"{end.removeprefix('error:')} {n}" for end, n in sorted(verdict["ends"].items()))
        found = sum(map(len, verdict["violations"].values()))
        numbers = f"{verdict['jobs']:,} | {verdict['hit']:,} | {verdict['tokens']:,}"
        lines.append(f"| {name} | {numbers} | {ends} | {found} |")
    lines += ["", "| pause | streams | p50 | p99 | longest | bar for p99 |", "|---|---|---|---|---|---|"]
    for kind, values in told["total"]["pauses"].items():
        row = f"{median(values):.2f} s | {percentile(values, 0.99):.2f} s | {max(values):.2f} s"
        lines.append(f"| {kind} | {len(values)} | {row} | {BARS_S.get(kind, '-')} |")
    if told["total"]["ratios"]:
        lines += ["", "| ratio | measured | bar |", "|---|---|---|"]
        lines += [f"| {name} | {ratio:.3f} | {RATIOS[name][1]} |" for name, ratio in told["total"]["ratios"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(markdown(json.loads(Path(sys.argv[1]).read_text())) + "\n")
