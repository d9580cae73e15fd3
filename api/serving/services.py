"""The objects that all routes share. `app` creates them once and passes them on.

The protocols are implemented by the classes of `shared.shards`, which make one queue of all Redis: `ShardedQueue` is
queue and channel, and passes each verb on to the `RedisQueue` or `RedisChannel` of the Redis that has the model or job.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis

from api.http.auth import Authenticator
from api.http.bodies import BodyReader
from api.serving.admission import Admission
from api.serving.redis_monitor import RedisMonitor
from api.serving.relay import Relay
from api.stores.batches import BatchStore
from api.stores.files import FileStore
from api.stores.responses import ResponseStore
from api.stores.stored_chats import ChatStore
from api.stores.webhooks import Webhooks
from shared.catalog.api_keys import ApiKeyStore
from shared.catalog.demand import DemandReader
from shared.catalog.job_records import JobRecords
from shared.catalog.model_registry import ModelRegistry
from shared.observability.metrics import ApiMetrics
from shared.queue.protocols import EventChannel, QueueProducer
from shared.settings import Settings
from shared.shards import ShardMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    settings: Settings
    redis: Redis
    queue: QueueProducer  # ShardedQueue
    relay: Relay
    shard_map: ShardMap
    redis_monitor: RedisMonitor
    job_records: JobRecords  # ShardedJobRecords
    admission: Admission
    channel: EventChannel  # ShardedQueue
    bodies: BodyReader
    webhooks: Webhooks
    responses: ResponseStore
    chats: ChatStore
    files: FileStore
    batches: BatchStore
    keys: ApiKeyStore
    authenticator: Authenticator
    model_registry: ModelRegistry  # ShardedModelRegistry
    demand: DemandReader  # ShardedDemand
    metrics: ApiMetrics


async def services_of(request: Request) -> Services:
    """Return the services of the request's app. This is async, since FastAPI would run a plain function in a thread for
    every request.
    """
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
