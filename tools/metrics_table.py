"""Writes docs/metrics.md from the metrics and the alerts: `python -m tools.metrics_table > docs/metrics.md`."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from shared.observability.metrics import ApiMetrics, QueueMetrics, WorkerMetrics

Holder = ApiMetrics | QueueMetrics | WorkerMetrics
ALERTS = Path(__file__).parents[1] / "helm" / "files" / "alerts.yaml"
TEMPLATE = re.compile(r"\{\{ \$(?:labels\.(\w+)|value)[^}]*\}\}")
HEAD = """# Metrics and alerts

Every API process and every worker has `/metrics`. Those of the queue are the same from whichever API process is asked:
take their maximum and not their sum. [monitoring.md](monitoring.md) says how to collect them.

This page is made by `python -m tools.metrics_table > docs/metrics.md`; a test compares them."""


def main() -> None:
    api = ApiMetrics()
    sections: dict[str, Holder] = {
        "The API": api,
        "The queue, from every API process": api.queue,
        "A worker": WorkerMetrics(),
    }
    print(HEAD)
    for title, holder in sections.items():
        print(f"\n## {title}\n\n| metric | labels | what it is |\n|---|---|---|")
        for metric in _metrics(holder):
            name = metric._name + ("_total" if isinstance(metric, Counter) else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            print(f"| `{name}` | {labels} | {metric._documentation} |")
    print("\n## Alerts\n\n| alert | severity | what it says | what to do |\n|---|---|---|---|")
    for rule in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"][0]["rules"]:
        said = [_plain(rule["annotations"][part]) for part in ("summary", "action")]
        print(f"| `{rule['alert']}` | {rule['labels']['severity']} | {said[0]} | {said[1]} |")


def _metrics(holder: Holder) -> Iterator[MetricWrapperBase]:
    return (each for each in vars(holder).values() if isinstance(each, MetricWrapperBase))


def _plain(text: str) -> str:
    """Replace each template by its label's name, or by N for the value."""
    return TEMPLATE.sub(lambda found: (found[1] or "N").upper(), text)


if __name__ == "__main__":
    main()
