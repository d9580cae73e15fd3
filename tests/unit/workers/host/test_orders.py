"""An operator's order is carried out once, and what came before it does not count against it."""

from pathlib import Path

from shared.domain.hosting import Order, OrderVerb
from shared.models_file.reading import parse
from workers.host.fleet import Fleet
from workers.host.hosted_models import hosted_specs
from workers.host.orders import Orders
from workers.host.remembered import Memory
from workers.host.standing import Standing


def test_failures_before_an_order_to_load_do_not_count_against_it(tmp_path: Path) -> None:
    """Otherwise the first worker that dies fails all waiting jobs."""
    memory = Memory(tmp_path / "learnt.json")
    orders = Orders(Fleet(tmp_path, memory, {}), memory, lambda: 100.0)
    standing = Standing(hosted_specs(parse(b'[models.a]\nengine = "scripted"\n', Path("models.toml")), 0)["a"])
    for _ in range(5):
        standing.failed("it died", 50.0)

    orders.take(Order(id="o", verb=OrderVerb.LOAD, model="a"), {"a": standing})

    assert (standing.failures, standing.reason, standing.not_before_s) == (0, "", 0.0)
    assert orders.outcomes == {}
