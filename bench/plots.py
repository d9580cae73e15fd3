"""Draws the plots in docs/ from the figures in bench/results/: `python -m bench.plots`."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
OURS, OTHERS = "#1f6f8b", ["#9aa5b1", "#c3a995", "#b5c4b1", "#d8d3c4"]


def colour(name: str, index: int) -> str:
    return OURS if name == "Penstock" else OTHERS[(index - 1) % len(OTHERS)]


def servers() -> None:
    """Plot the output tokens per second of whole servers, by concurrent streams."""
    sizes = {"25 M parameters": "serving-25m", "250 M parameters": "serving-250m"}
    figure, panes = plt.subplots(1, len(sizes), figsize=(9, 3.4), layout="constrained")
    for pane, (title, name) in zip(panes, sizes.items(), strict=True):
        rounds: list[dict[str, Any]] = load(name)
        streams = sorted({each["streams"] for each in rounds})
        names = list(dict.fromkeys(each["server"] for each in rounds if each["server"].startswith("Penstock")))
        names += [each for each in dict.fromkeys(each["server"] for each in rounds) if each not in names]
        for index, server in enumerate(names):
            cells = [[e["tokens_s"] for e in rounds if (e["server"], e["streams"]) == (server, n)] for n in streams]
            where = [at + (index - len(names) / 2 + 0.5) * 0.2 for at in range(len(streams))]
            bars(pane, where, cells, width=0.19, color=colour(server, index), label=server.partition(" (")[0])
        pane.set_xticks(range(len(streams)), [f"{n} streams" for n in streams])
        pane.set_title(title, fontsize=10)
    panes[0].set_ylabel("output tokens/s over HTTP")
    figure.legend(*panes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    save(figure, "servers")


def engine() -> None:
    """Plot the engine against transformers' own ways, in one process."""
    figure, panes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
    for pane, size in zip(panes, ("25m", "250m"), strict=True):
        (title, ways), *_ = load(f"engine-{size}").items()
        for at, (name, values) in enumerate(reversed(ways.items())):
            bars(pane, [at], [values], horizontal=True, color=colour(name, len(ways) - 1 - at))
        pane.set_yticks(range(len(ways)), [name.replace("`", "") for name in reversed(ways)], fontsize=7)
        pane.set_title(title.replace(", per CPU second", ""), fontsize=9)
        pane.set_xlabel("tokens per CPU second")
    save(figure, "engine")


def soak() -> None:
    """Plot memory over half an hour of the soak test."""
    samples: list[dict[str, Any]] = load("soak")
    minutes = [each["seconds"] / 60 for each in samples]
    figure, (memory, blocks) = plt.subplots(2, 1, figsize=(9, 3.6), sharex=True, layout="constrained")
    for (name, label), shade in zip(
        {"worker_mb": "worker", "redis_mb": "Redis", "api_mb": "API"}.items(), [OURS, *OTHERS], strict=False
    ):
        memory.plot(minutes, [each[name] for each in samples], color=shade, label=label)
    memory.set_ylabel("MB")
    memory.set_ylim(bottom=0)
    memory.legend(fontsize=7, frameon=False, ncols=3)
    blocks.plot(minutes, [each["blocks"] for each in samples], color=OURS, linewidth=0.8)
    blocks.set_ylabel("blocks in use")
    blocks.set_xlabel("minutes")
    save(figure, "soak")


def resume() -> None:
    """Plot one stream's tokens over time, across a fault of its worker or of Redis."""
    records: dict[str, dict[str, Any]] = load("resume")
    figure, panes = plt.subplots(1, len(records), figsize=(9, 2.6), sharey=True, layout="constrained")
    for pane, (name, record) in zip(panes, records.items(), strict=True):
        pane.plot(record["seconds"], range(1, len(record["seconds"]) + 1), color=OURS, linewidth=1.2)
        pane.axvline(0, color="#b04a3a", linewidth=0.8, linestyle="--")
        pane.set_title(name, fontsize=9)
        pane.set_xlabel("seconds from then on")
        pane.set_xlim(-1.5, 6)
        pane.set_ylim(0, 800)
    panes[0].set_ylabel("tokens that the client has")
    save(figure, "resume")


def autoscale() -> None:
    """Plot workers and queued jobs over simulated time."""
    found: list[dict[str, Any]] = [each for each in load("autoscale") if each["series"]]
    figure, panes = plt.subplots(2, len(found), figsize=(9, 3.4), sharex=True, layout="constrained")
    for (workers, waiting), each in zip(panes.T, found, strict=True):
        minutes, up, jobs = zip(*each["series"], strict=True)
        workers.step(minutes, up, where="post", color=OURS, linewidth=1)
        workers.set_title(each["trace"], fontsize=9)
        waiting.plot(minutes, jobs, color="#b04a3a", linewidth=0.8)
        waiting.set_xlabel("minutes")
    panes[0][0].set_ylabel("workers")
    panes[1][0].set_ylabel("jobs waiting")
    save(figure, "autoscale")


def bars(
    pane: Any, where: Sequence[float], cells: Sequence[Sequence[float]], *, horizontal: bool = False, **looks: Any
) -> None:
    """Draw medians, with the lowest and the highest round as whiskers."""
    middles = [statistics.median(cell) for cell in cells]
    spread = [
        [m - min(c) for m, c in zip(middles, cells, strict=True)],
        [max(c) - m for m, c in zip(middles, cells, strict=True)],
    ]
    thin = {"error_kw": {"elinewidth": 0.8, "ecolor": "#444444"}}
    if horizontal:
        pane.barh(where, middles, xerr=spread, **thin, **looks)
    else:
        pane.bar(where, middles, yerr=spread, **thin, **looks)


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def save(figure: Any, name: str) -> None:
    for pane in figure.axes:
        pane.spines[["top", "right"]].set_visible(False)
        pane.tick_params(labelsize=8)
    figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    mpl.rcParams |= {"svg.hashsalt": "penstock", "font.size": 8}
    for plot in (servers, engine, soak, resume, autoscale):
        plot()
