"""The order in which jobs are served, as `fair_queue.lua` decides it in Redis. Pure.

The least-served class and tenant come first, by tokens divided by weight. A tenant returning from idle starts at the
current minimum: idling earns no credit. (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024.)
"""

from collections import deque
from collections.abc import Callable

from shared.domain.job import Job

UNDATED_MS = 60_000
LOOK_BACK_MAX = 256


class TokenCounters:
    """Tokens served to members, divided by their weight."""

    def __init__(self) -> None:
        self.active: dict[str, float] = {}
        self._idle: dict[str, float] = {}
        self._least = 0.0

    def activate(self, member: str) -> None:
        if member not in self.active:
            least = min(self.active.values(), default=self._least)
            self.active[member] = max(self._idle.pop(member, 0.0), least)

    def deactivate(self, member: str) -> None:
        own = self.active.pop(member, None)
        if own is not None:
            self._least = min(self.active.values(), default=own)
            self._idle[member] = own
            self._idle = {name: count for name, count in self._idle.items() if count >= self._least}

    def charge(self, member: str, amount: float) -> None:
        if member in self.active:
            self.active[member] += amount
        elif amount > 0 or member in self._idle:
            self._idle[member] = max(self._idle.get(member, self._least) + amount, 0.0)

    def by_least(self) -> list[str]:
        """List the members, the least-served one first."""
        return sorted(self.active, key=lambda member: (self.active[member], member))


class FairQueue:
    """The waiting jobs of one model."""

    def __init__(self) -> None:
        self._classes = TokenCounters()
        self._tenants: dict[str, TokenCounters] = {}
        self._lanes: dict[tuple[str, str], deque[Job]] = {}
        self._due: dict[str, float] = {}

    def push(self, job: Job, queued_ms: float = 0) -> None:
        """Put the job into its lane, behind those that are due before it. `queued_ms` is the time; a job without a date
        counts as due some time after it, so jobs that come later overtake it for no longer than that."""
        rank, tenant = _place(job)
        self._due[job.id] = job.due_ms or queued_ms + UNDATED_MS
        lane = self._lanes.setdefault((rank, tenant), deque())
        later = 0
        while later < min(len(lane), LOOK_BACK_MAX) and self._due[lane[-1 - later].id] > self._due[job.id]:
            later += 1
        lane.insert(len(lane) - later, job)
        self._tenants.setdefault(rank, TokenCounters()).activate(tenant)
        self._classes.activate(rank)

    def remove(self, job: Job) -> None:
        self._lanes[_place(job)].remove(job)
        del self._due[job.id]
        self._leave_if_empty(*_place(job))

    def pop(self, cost: Callable[[Job], float], fits: Callable[[Job], bool]) -> Job | None:
        """Take out the next job that fits, and charge `cost` tokens for it; None when none does. A job that does not
        fit holds up its own tenant only."""
        places = [(rank, tenant) for rank in self._classes.by_least() for tenant in self._tenants[rank].by_least()]
        for place in places:
            if fits(self._lanes[place][0]):
                job = self._lanes[place].popleft()
                del self._due[job.id]
                self.charge(job, cost(job))
                self._leave_if_empty(*place)
                return job
        return None

    def charge(self, job: Job, tokens: float) -> None:
        rank, tenant = _place(job)
        self._tenants.setdefault(rank, TokenCounters()).charge(tenant, tokens / job.weight)
        self._classes.charge(rank, tokens / job.priority.weight)

    def waiting(self, job: Job) -> int:
        """Count the waiting jobs of the job's class and above."""
        return sum(len(lane) for (rank, _), lane in self._lanes.items() if int(rank) <= job.priority.rank)

    def of_tenant(self, job: Job) -> int:
        return len(self._lanes.get(_place(job), ()))

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def _leave_if_empty(self, rank: str, tenant: str) -> None:
        if not self._lanes[rank, tenant]:
            del self._lanes[rank, tenant]
            self._tenants[rank].deactivate(tenant)
            if not self._tenants[rank].active:
                self._classes.deactivate(rank)


def _place(job: Job) -> tuple[str, str]:
    return str(job.priority.rank), job.tenant
