"""The objects that all routes share. `app` creates them once and passes them on.

The classes of `shared.shards` and `shared.sharded_catalog` make one queue of all Redis. A verb of `queue` is that of
`RedisQueue`, called for the Redis that has the model or the job; `listen` and `read` are those of `RedisChannel`.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis

from api.http.auth import Authenticator
from api.http.json_route import BodyReader
from api.serving.admission import Admission
from api.serving.hosted_models import HostedModels
from api.serving.model_router import ModelRouter
from api.serving.moderation import Moderation
from api.serving.redis_monitor import RedisMonitor
from api.serving.relay import Relay
from api.stores.batches import BatchStore
from api.stores.conversations import ConversationStore
from api.stores.files import FileStore
from api.stores.json_store import RecordStore
from api.stores.responses import ResponseStore
from api.stores.stored_chats import StoredChat
from api.stores.webhooks import Webhooks
from shared.catalog.api_keys import ApiKeyStore
from shared.catalog.model_orders import ModelOrders
from shared.observability.metrics import ApiMetrics
from shared.settings import Settings
from shared.sharded_catalog import ShardedDemand, ShardedJobRecords, ShardedModelRegistry, ShardedPlaces
from shared.shards import ShardedQueue, ShardMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    settings: Settings
    redis: Redis
    queue: ShardedQueue
    relay: Relay
    shard_map: ShardMap
    redis_monitor: RedisMonitor
    job_records: ShardedJobRecords
    model_router: ModelRouter
    hosted_models: HostedModels
    places: ShardedPlaces
    model_orders: ModelOrders
    admission: Admission
    moderation: Moderation
    bodies: BodyReader
    webhooks: Webhooks
    responses: ResponseStore
    conversations: ConversationStore
    chats: RecordStore[StoredChat]
    files: FileStore
    batches: BatchStore
    keys: ApiKeyStore
    authenticator: Authenticator
    model_registry: ShardedModelRegistry
    demand: ShardedDemand
    metrics: ApiMetrics


async def services_of(request: Request) -> Services:
    """Return the services of the request's app. This is async, since FastAPI would run a plain function in a thread for
    every request.
    """
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
