"""Writes the Grafana dashboard, `helm/files/dashboard.json`, from the panels below: `python -m tools.dashboard`."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from shared.domain.events import REQUEST_FAULTS

TARGET = Path(__file__).parents[1] / "helm" / "files" / "dashboard.json"
WIDTH, HEIGHT, ACROSS = 8, 7, 24
SOURCE = {"type": "prometheus", "uid": "${source}"}


class Panel(NamedTuple):
    """One panel. `lines` maps each line's legend to its PromQL."""

    title: str
    about: str
    unit: str
    lines: dict[str, str]


MODEL = 'model=~"$model"'
BY_REQUEST = "|".join(sorted(REQUEST_FAULTS))


def quantiles(metric: str, by: str = "") -> dict[str, str]:
    chosen = f"{{{MODEL}}}" if by else ""
    return {
        f"p{int(q * 100)}": f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{chosen}[$__rate_interval])))"
        for q in (0.5, 0.95, 0.99)
    }


def quantile_of(q: float, metric: str) -> str:
    return f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket[$__rate_interval])))"


def rate(metric: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{MODEL}{where}}}[$__rate_interval]))"


ROWS: dict[str, list[Panel]] = {
    "Queue": [
        Panel(
            "Queued jobs",
            "Queued jobs by class. Every API reports the same number, so the maximum counts.",
            "short",
            {"{{model}} {{priority}}": f"max by (model, priority) (penstock_queue_jobs{{{MODEL}}})"},
        ),
        Panel(
            "Oldest job",
            "The time that the oldest queued job has waited.",
            "s",
            {"{{model}}": f"max by (model) (penstock_queue_oldest_seconds{{{MODEL}}})"},
        ),
        Panel(
            "Workers and workers wanted",
            "The workers that serve, and the number that autoscalers aim at.",
            "short",
            {
                "{{model}} wanted": f"max by (model) (penstock_workers_wanted{{{MODEL}}})",
                "{{model}} alive": f"max by (model) (penstock_workers{{{MODEL}}})",
            },
        ),
        Panel(
            "Wait before the first claim",
            "The time from the request to the first claim of its job.",
            "s",
            quantiles("penstock_queue_wait_seconds", "model"),
        ),
        Panel(
            "Queued tokens",
            "Tokens of the prompts of queued jobs, and an estimate for their answers.",
            "short",
            {"{{model}}": f"max by (model) (penstock_queue_tokens{{{MODEL}}})"},
        ),
        Panel(
            "Refused requests",
            "Refused requests by reason; each got a Retry-After.",
            "reqps",
            {"{{reason}}": "sum by (reason) (rate(penstock_refused_requests_total[$__rate_interval]))"},
        ),
        Panel(
            "Jobs ended",
            "Ended jobs by outcome.",
            "ops",
            {"{{model}} {{outcome}}": rate("penstock_jobs_total", "model, outcome")},
        ),
        Panel(
            "Cost",
            "The cost of an hour at this rate, by the prices of upstreams and in their currency.",
            "short",
            {"{{model}}": f"3600 * {rate('penstock_cost_total', 'model')}"},
        ),
    ],
    "Clients": [
        Panel(
            "Time to first token",
            "The time from the request to its first text, with its time in the queue.",
            "s",
            quantiles("penstock_time_to_first_token_seconds", "model"),
        ),
        Panel(
            "Between two tokens",
            "The time between two tokens of a stream.",
            "s",
            quantiles("penstock_inter_token_latency_seconds", "model"),
        ),
        Panel(
            "Requests",
            "Requests by HTTP status.",
            "reqps",
            {"{{status}}": "sum by (status) (rate(penstock_http_requests_total[$__rate_interval]))"},
        ),
        Panel(
            "Invalid requests",
            "Jobs whose request was invalid, as a worker found, by reason. Nothing is wrong with Penstock.",
            "ops",
            {"{{model}} {{code}}": rate("penstock_failed_jobs_total", "model, code", f',code=~"{BY_REQUEST}"')},
        ),
        Panel(
            "Open streams and relayed events",
            "Open streams, waiting ones included, and events relayed to clients per second.",
            "short",
            {
                "streams": "sum(penstock_open_streams)",
                "events/s": "sum(rate(penstock_relayed_events_total[$__rate_interval]))",
                "log reads/s": "sum(rate(penstock_log_reads_total[$__rate_interval]))",
            },
        ),
    ],
    "Engines": [
        Panel(
            "Tokens",
            "Tokens generated, prefilled, found in the prefix cache, and computed in vain.",
            "short",
            {
                "written/s": rate("penstock_generated_tokens_total", "model"),
                "prompt/s": rate("penstock_prefill_tokens_total", "model"),
                "cached/s": rate("penstock_cached_prompt_tokens_total", "model"),
                "wasted/s": rate("penstock_wasted_tokens_total", "model"),
            },
        ),
        Panel("Step", "The time of one engine step.", "s", quantiles("penstock_step_seconds", "model")),
        Panel(
            "Batch",
            "The average number of sequences in a step, and of those that wait for a place or a block.",
            "short",
            {
                "in a step": f"{rate('penstock_batch_sequences_sum', 'model')} / "
                + rate("penstock_batch_sequences_count", "model"),
                "waiting": f"sum by (model) (penstock_waiting_sequences{{{MODEL}}})",
            },
        ),
        Panel(
            "Cache blocks",
            "Blocks of the KV cache in use, and sequences that were preempted.",
            "short",
            {
                "{{model}} used": f"sum by (model) (penstock_cache_blocks_used{{{MODEL}}})",
                "{{model}} in all": f"sum by (model) (penstock_cache_blocks{{{MODEL}}})",
                "{{model}} preempted/s": rate("penstock_preempted_sequences_total", "model"),
            },
        ),
    ],
    "Faults": [
        Panel(
            "Redelivered jobs",
            "Jobs that left a worker, by reason; jobs that another worker took over; and writes that came too late.",
            "ops",
            {
                "{{model}} {{found}}": rate("penstock_lost_deliveries_total", "model, found"),
                "{{model}} redelivered": rate("penstock_redelivered_jobs_total", "model"),
                "{{model}} late writes": rate("penstock_fenced_writes_total", "model"),
            },
        ),
        Panel(
            "Failures",
            "Failed jobs by reason, without invalid requests, and failed engine steps.",
            "ops",
            {
                "{{model}} {{code}}": rate("penstock_failed_jobs_total", "model, code", f',code!~"{BY_REQUEST}"'),
                "{{model}} steps": rate("penstock_failed_steps_total", "model"),
            },
        ),
        Panel(
            "Lag",
            "The lag of the event loops of APIs and workers, and the time that events wait in an API to be relayed.",
            "s",
            {
                "loops, p99": quantile_of(0.99, "penstock_loop_lag_seconds"),
                "relay, worst": "max(penstock_relay_lag_seconds)",
            },
        ),
        Panel(
            "Redis errors",
            "Calls to Redis that failed.",
            "ops",
            {"errors/s": "sum(rate(penstock_redis_errors_total[$__rate_interval]))"},
        ),
        Panel(
            "Redis",
            "1 while it answers and would lose no job, and how much of its memory is used. 0 is the home.",
            "short",
            {
                "{{redis}} up": "min by (redis) (penstock_redis_up)",
                "{{redis}} memory": "max by (redis) (penstock_redis_memory_ratio)",
            },
        ),
    ],
}


def panel(number: int, at: tuple[int, int], shown: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(65 + index), "expr": query, "legendFormat": legend, "datasource": SOURCE}
        for index, (legend, query) in enumerate(shown.lines.items())
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": shown.title,
        "description": shown.about,
        "datasource": SOURCE,
        "gridPos": {"x": at[0], "y": at[1], "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": shown.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


def panels() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": title,
                "gridPos": {"x": 0, "y": top, "w": ACROSS, "h": 1},
                "panels": [],
            }
        )
        top += 1
        for index, shown in enumerate(row):
            down, across = divmod(index, ACROSS // WIDTH)
            made.append(panel(len(made) + 1, (across * WIDTH, top + down * HEIGHT), shown))
        top += -(-len(row) * WIDTH // ACROSS) * HEIGHT
    return made


def dashboard() -> dict[str, Any]:
    chosen = {"type": "query", "datasource": SOURCE, "includeAll": True, "multi": True, "refresh": 2}
    query = {"query": "label_values(penstock_workers, model)", "refId": "model"}
    everything = {"text": "All", "value": "$__all"}
    return {
        "uid": "penstock",
        "title": "Penstock",
        "tags": ["penstock"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                {"name": "model", "label": "Model", **chosen, "query": query, "current": everything},
            ]
        },
        "panels": panels(),
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")
