"""What the routes share, made once in `app` and handed to them.

Behind the protocols stand the classes of `shared.fleet`, which make one queue of all Redis: `Fleet` is queue and
channel, and passes each verb on to the `RedisQueue` or `RedisChannel` of the Redis that has the model or the job.
"""

from dataclasses import dataclass

from fastapi import Request
from redis.asyncio import Redis

from api.admission import Admission
from api.auth import Gate
from api.batch import BatchStore
from api.bodies import BodyReader
from api.files import FileStore
from api.pressure import Pressure
from api.relay import Relay
from api.responses import ResponseStore
from api.stored_chats import ChatStore
from api.webhooks import Webhooks
from shared.api_key import KeyRing
from shared.demand import DemandReader
from shared.directory import Directory
from shared.fleet import Places
from shared.ledger import Ledger
from shared.queue import JobChannel, JobQueue
from shared.settings import Settings
from shared.telemetry import ApiMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    settings: Settings
    redis: Redis
    queue: JobQueue  # Fleet
    relay: Relay
    places: Places
    pressure: Pressure
    ledger: Ledger  # FleetLedger
    admission: Admission
    channel: JobChannel  # Fleet
    bodies: BodyReader
    webhooks: Webhooks
    responses: ResponseStore
    chats: ChatStore
    files: FileStore
    batches: BatchStore
    keys: KeyRing
    gate: Gate
    directory: Directory  # FleetDirectory
    demand: DemandReader  # FleetDemand
    metrics: ApiMetrics


async def house_of(request: Request) -> House:
    """Async, since FastAPI would run a plain function in a thread, for every request."""
    house = request.app.state.house
    assert isinstance(house, House)
    return house
