"""What the routes share, made once in `app` and handed to them."""

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
    queue: JobQueue
    relay: Relay
    places: Places
    pressure: Pressure
    ledger: Ledger
    admission: Admission
    channel: JobChannel
    bodies: BodyReader
    webhooks: Webhooks
    responses: ResponseStore
    chats: ChatStore
    files: FileStore
    batches: BatchStore
    keys: KeyRing
    gate: Gate
    directory: Directory
    demand: DemandReader
    metrics: ApiMetrics


async def house_of(request: Request) -> House:
    """Async, since FastAPI would run a plain function in a thread, for every request."""
    house = request.app.state.house
    assert isinstance(house, House)
    return house
