"""`penstock models ps`, `load`, `unload`, `switch` and `keep`: what hosts have loaded, and orders to them."""

import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click

from cli.backend import Backend, json_option, with_backend
from cli.click_types import Period
from cli.terminal import echo, echo_json, table
from shared.catalog.model_orders import FOREVER_S, PlacedOrder
from shared.catalog.model_states import ABSENT, model_objects
from shared.domain.hosting import HostedModel, HostedState, OrderVerb, When

LOOK_S = 0.3
WAIT_S = 600.0
COLUMNS = ("MODEL", "STATE", "HOST", "MEMORY", "SINCE", "UNLOADS", "WORKERS", "QUEUED")
UNLOADED = {ABSENT, HostedState.CONFIGURED, HostedState.FAILED}
DONE = {OrderVerb.LOAD: "loaded", OrderVerb.UNLOAD: "unloaded", OrderVerb.KEEP: "kept"}
Placing = Callable[[Backend], Awaitable[list[PlacedOrder]]]

host_option = click.option("--host", default="", help="Only this host, by its id or its hostname.")
wait_option = click.option(
    "--wait",
    "wait_s",
    type=Period(),
    default=f"{WAIT_S:.0f}s",
    show_default=True,
    help="How long to wait until it is done. It is done in any case.",
)
when_help = (
    "idle: once it has no work. running: after its running jobs. now: its running jobs go back into the queue, and go "
    "on where they were when it is loaded again."
)


def when_option(default: When) -> Callable[[Any], Any]:
    kind = click.Choice([str(each) for each in When])
    return click.option("--when", type=kind, default=str(default), show_default=True, help=when_help)


@click.command()
@json_option
@click.pass_obj
def ps(redis_url: str | None, as_json: bool) -> None:
    """List the models that are loaded, or being loaded or unloaded, with the memory that they take."""

    async def print_loaded(backend: Backend) -> None:
        objects = await model_objects(backend.model_registry, backend.hosting)
        loaded = [each for each in objects if each["state"] not in UNLOADED]
        if as_json:
            echo_json(loaded)
            return
        echo(table(COLUMNS, [line for each in loaded for line in _lines(each)]))

    with_backend(redis_url, print_loaded)


@click.command()
@click.argument("model")
@host_option
@wait_option
@click.pass_obj
def load(redis_url: str | None, model: str, host: str, wait_s: float) -> None:
    """Load a model, for which others may have to be unloaded."""
    _order(redis_url, lambda backend: backend.model_orders.load(model, host=host), wait_s)


@click.command()
@click.argument("model")
@when_option(When.IDLE)
@host_option
@wait_option
@click.pass_obj
def unload(redis_url: str | None, model: str, when: str, host: str, wait_s: float) -> None:
    """Unload a model. A job that comes later loads it again."""
    _order(redis_url, lambda backend: backend.model_orders.unload(model, when=When(when), host=host), wait_s)


@click.command()
@click.argument("model")
@click.argument("instead")
@when_option(When.RUNNING)
@host_option
@wait_option
@click.pass_obj
def switch(redis_url: str | None, model: str, instead: str, when: str, host: str, wait_s: float) -> None:
    """Unload MODEL, and load INSTEAD in its place."""
    _order(redis_url, lambda backend: backend.model_orders.switch(model, instead, when=When(when), host=host), wait_s)


@click.command()
@click.argument("model")
@click.argument("period", type=Period())
@host_option
@wait_option
@click.pass_obj
def keep(redis_url: str | None, model: str, period: float, host: str, wait_s: float) -> None:
    """Keep MODEL loaded for a PERIOD: 30m, 2h, forever, or 0 to keep it no longer.

    One that is not loaded is loaded first. It is not unloaded while it is idle, or because another model waits for its
    place."""
    _order(redis_url, lambda backend: backend.model_orders.keep(model, period, host=host), wait_s)


def _order(redis_url: str | None, place: Placing, wait_s: float) -> None:
    async def order(backend: Backend) -> None:
        placed = await place(backend)
        if not placed:
            echo("it is not loaded")
            return
        done = await _followed(backend, placed, wait_s)
        for each in done:
            echo(_result(each, wait_s), err=each.outcome is None or bool(each.failure))
        if any(each.failure or each.outcome is None for each in done):
            sys.exit(1)

    with_backend(redis_url, order)


async def _followed(backend: Backend, placed: Sequence[PlacedOrder], wait_s: float) -> list[PlacedOrder]:
    """Wait for the outcomes, and tell on standard error how far the models are, each time that it changes."""
    until, told = time.monotonic() + wait_s, ""
    while True:
        left_s = max(until - time.monotonic(), 0)
        done = await backend.model_orders.outcomes(placed, wait_s=min(LOOK_S, left_s))
        if left_s <= LOOK_S or all(each.outcome for each in done):
            return done
        placed = done
        if (state := await _progress(backend, placed)) != told:
            told = state
            echo(told, err=True)


async def _progress(backend: Backend, placed: Sequence[PlacedOrder]) -> str:
    asked = {(each.host, model) for each in placed for model in (each.order.model, each.order.instead)}
    records = [await backend.hosting.of(model) for model in sorted({model for _, model in asked if model})]
    found = [record for of_one in records for record in of_one if (record.host, record.model) in asked]
    return "; ".join(f"{record.model}: {state_of(record)}" for record in found)


def state_of(record: HostedModel) -> str:
    """Write the model's state, and how far its loading is, in steps of 10 %."""
    if record.state is not HostedState.LOADING:
        return record.state
    percent = f"{round(record.progress * 10) * 10} %" if record.progress else ""
    if percent and record.estimated:
        percent = f"(about {percent})"
    return " ".join(["loading", *filter(None, [record.phase, percent])])


def _result(placed: PlacedOrder, wait_s: float) -> str:
    order = placed.order
    what = f"{order.model} for {order.instead}" if order.instead else order.model
    if placed.failure:
        return f"{what}: {placed.failure}"
    if placed.outcome is None:
        return f"{what}: not done within {wait_s:g} s; it will be done as soon as it can be"
    if order.verb is OrderVerb.SWITCH:
        return f"{order.model} unloaded, {order.instead} loaded"
    return (
        f"{what} kept no longer" if order.verb is OrderVerb.KEEP and not order.until_s else f"{what} {DONE[order.verb]}"
    )


def _lines(model: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return a line for each host that has the model loaded, or one for a model that no host has loaded."""
    queued = model["waiting_jobs"]
    loaded = [host for host in model["hosts"] if host["state"] not in UNLOADED]
    if not loaded:
        return [(model["id"], model["state"], "-", "-", "-", "-", model["workers"], queued)]
    return [_line(model["id"], host, queued) for host in loaded]


def _line(name: str, host: dict[str, Any], queued: int) -> tuple[object, ...]:
    state = host["state"]
    if state == HostedState.LOADING:
        percent = f"{'~' if host['progress_estimated'] else ''}{host['progress']:.0%}" if host["progress"] else ""
        state = " ".join(filter(None, [state, host["phase"], percent]))
    memory = f"{host['memory_bytes'] / 2**30:.1f} GiB" if host["memory_bytes"] else "-"
    where = host["hostname"] or host["host"]
    return name, state, where, memory, _ago(host["since"]), _unloads(host), host["workers"], queued


def _unloads(host: dict[str, Any]) -> str:
    """Say when the model is unloaded, as far as that is known."""
    now = time.time()
    if host["pinned"] or (host["kept_until"] or 0) > now + FOREVER_S / 2:
        return "never"
    until = max(host["kept_until"] or 0, host["unloads_at"] or 0)
    return f"in {_period(until - now)}" if until > now else "-"


def _ago(since: float) -> str:
    return f"{_period(time.time() - since)} ago"


def _period(seconds: float) -> str:
    """Write a time by its two greatest units: 2h 5m, 12s."""
    left, parts = max(math.ceil(seconds), 0), []
    for name, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{name}")
            left %= size
    return " ".join(parts[:2]) or "0s"
