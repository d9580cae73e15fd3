"""The faults, by the numbers of the table in bench/README.md, and how often each strikes."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.chaos import background, faults, host_faults, hostile, mixed_faults
from bench.chaos.act import Act
from bench.chaos.judge import Mercy

TOLD = Mercy(lost=True)
STRICT = Mercy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    what: str
    run: Callable[[Act], Awaitable[None]]
    mercy: Mercy = STRICT
    rounds: tuple[int, int] = (2, 20)  # in the short and in the release form
    clients: int = 40
    tokens: tuple[int, int] = (60, 150)


SCENARIOS = [
    Scenario(name="F1", what="worker SIGKILL", run=faults.worker_killed, rounds=(3, 60)),
    Scenario(name="F2", what="worker SIGSTOP for two leases", run=faults.worker_frozen, rounds=(1, 10)),
    Scenario(
        name="F3",
        what="worker SIGTERM, again, SIGKILL in the drain",
        run=faults.worker_told_to_stop,
        rounds=(3, 20),
        clients=24,
        tokens=(250, 250),  # longer than the drain, so that jobs are handed over
    ),
    Scenario(name="F4", what="engine raises, finds no memory, hangs", run=faults.engine_fails, rounds=(3, 12)),
    Scenario(name="F5", what="poison job", run=faults.poison, rounds=(1, 5)),
    Scenario(name="F6", what="API SIGKILL, SIGSTOP", run=faults.api_dies, rounds=(2, 12)),
    Scenario(name="F7", what="a crowd that comes, stops reading and goes", run=faults.clients_misbehave, rounds=(1, 6)),
    Scenario(name="F8", what="Redis SIGKILL, down 1, 5, 30 s", run=faults.redis_killed, rounds=(1, 10)),
    Scenario(
        name="F9", what="Redis drops its clients, pauses, stalls", run=faults.redis_drops_and_stalls, rounds=(4, 16)
    ),
    Scenario(name="F10", what="Redis full", run=faults.redis_full, rounds=(1, 10)),
    Scenario(name="F11", what="the tail of Redis's file cut", run=faults.log_tail_cut, mercy=TOLD, rounds=(1, 6)),
    Scenario(name="F12", what="network delays, resets, swallows, splits", run=faults.network_breaks, rounds=(4, 16)),
    Scenario(name="F13", what="clocks an hour off", run=faults.clock_wrong, rounds=(1, 3)),
    Scenario(name="F14", what="operator trims and deletes entries", run=faults.operator_cuts, rounds=(1, 12)),
    Scenario(name="F14b", what="operator flushes", run=faults.operator_flushes, mercy=TOLD, rounds=(1, 2)),
    Scenario(name="F15", what="three times the load", run=faults.overload, rounds=(1, 2), clients=faults.ROOMY_CLIENTS),
    Scenario(name="flood", what="one tenant sends eight times as much", run=faults.flood, rounds=(1, 1), clients=0),
    Scenario(name="I10", what="kills, stops, and tokens counted", run=faults.recomputing, rounds=(2, 6), clients=0),
    Scenario(name="F16", what="the same request twice", run=faults.duplicates, rounds=(1, 20)),
    Scenario(name="F17", what="cancel as the job ends", run=faults.cancels, rounds=(1, 12)),
    Scenario(name="F6b", what="a stream cut behind any frame", run=hostile.streams_cut, rounds=(1, 10), clients=8),
    Scenario(name="F18", what="reading an answer raises", run=hostile.unreadable, rounds=(3, 30)),
    Scenario(name="F19", what="hostile bodies", run=hostile.bodies, rounds=(1, 3), clients=8),
    Scenario(name="F19b", what="one tenant's wide jobs", run=hostile.wide_jobs, rounds=(1, 2), clients=0),
    Scenario(name="F19c", what="requests that are refused", run=hostile.refused, rounds=(1, 3), clients=0),
    Scenario(name="F19d", what="tenants guess each other's prompts", run=hostile.guesses, rounds=(1, 3), clients=0),
    Scenario(name="F20", what="a receiver that drips", run=background.dripping_receiver, rounds=(1, 3), clients=8),
    Scenario(name="F21", what="a batch's file, key, model are gone", run=background.batches, rounds=(1, 3), clients=8),
    Scenario(
        name="F22", what="cancelled while others wait for it", run=hostile.cancelled_early, rounds=(2, 20), clients=0
    ),
    Scenario(name="F23", what="two supervisors, one folder", run=background.supervisors, rounds=(1, 1), clients=4),
    Scenario(name="F25", what="host, worker SIGKILL in swaps", run=host_faults.host_killed, rounds=(2, 12), clients=4),
]

# The built-in model's steps take real time, so its load is smaller.
TORCH_SCENARIOS = [
    Scenario(name="F1", what="worker SIGKILL", run=faults.worker_killed, rounds=(2, 20), clients=8),
    Scenario(name="F2", what="worker SIGSTOP for two leases", run=faults.worker_frozen, rounds=(1, 4), clients=8),
    Scenario(
        name="F3", what="worker SIGTERM, again, SIGKILL", run=faults.worker_told_to_stop, rounds=(1, 9), clients=8
    ),
    Scenario(name="F8", what="Redis SIGKILL, down 1, 5, 30 s", run=faults.redis_killed, rounds=(1, 4), clients=8),
]

# Every kind of engine side by side.
MIXED_SCENARIOS = [
    Scenario(name="K0", what="K1, K5 and K7 in a row", run=mixed_faults.everything, rounds=(1, 0), clients=24),
    Scenario(
        name="K1", what="workers of each engine, a server SIGKILL", run=mixed_faults.workers_killed, rounds=(0, 4)
    ),
    Scenario(name="K2", what="vLLM's core, a command's server SIGKILL", run=mixed_faults.engine_killed, rounds=(0, 2)),
    Scenario(name="K3", what="servers of upstreams SIGKILL, and back", run=mixed_faults.server_killed, rounds=(0, 6)),
    Scenario(name="K4", what="workers of each engine SIGSTOP", run=mixed_faults.workers_frozen, rounds=(0, 2)),
    Scenario(name="K5", what="Redis SIGKILL, down 1, 5, 30 s", run=faults.redis_killed, rounds=(0, 3)),
    Scenario(name="K6", what="no worker at all", run=mixed_faults.nobody_works, rounds=(0, 2)),
    Scenario(name="K7", what="failed jobs requeued and replayed", run=mixed_faults.replays, rounds=(0, 2)),
    Scenario(name="K8", what="batches of every model", run=mixed_faults.batches, rounds=(0, 2)),
]
