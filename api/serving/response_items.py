"""The items of stored responses: what a response is now, and the items that a later request refers to."""

from collections.abc import Sequence
from typing import Any

from api.serving.services import Services
from api.stores.responses import RESPONSE_PREFIX, ResponseRecord
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.events import Failed, Finished
from shared.domain.lifecycle import TERMINAL

Json = dict[str, Any]
GONE = Failed(code="job_lost", message="The job of this response is no longer known.")


async def response_now(services: Services, record: ResponseRecord) -> Json:
    """Build the response from the job's log. A job that another tool ended, without a last event, has failed."""
    (page,) = await services.queue.read([(record.id, 0)])
    builder = record.builder(record.id)
    for event in page.events:
        builder.apply(event)
    over = page.state is None or page.state in TERMINAL
    if over and not (page.events and isinstance(page.events[-1], Finished)):
        builder.apply(Finished(seq=len(page.events), outcome=GONE))
    return builder.body()


async def with_references(services: Services, items: Sequence[Json], *, tenant: str) -> list[Json]:
    """Return the items, with those that they refer to in the place of references. Raises NotFound for an item of no
    stored response of this tenant."""
    found: dict[str, Json] = {}
    whole = []
    for item in items:
        if item["type"] != "item_reference":
            whole.append(item)
            continue
        if item["id"] not in found:
            found |= await _items_beside(services, item["id"], tenant=tenant)
        if item["id"] not in found:
            raise NotFound(f"There is no item {item['id']} in a stored response.", param="input")
        whole.append(found[item["id"]])
    return whole


async def _items_beside(services: Services, item_id: str, *, tenant: str) -> dict[str, Json]:
    """Return all items of the response that has this item, by their ids. An item's id holds its response's."""
    parts = item_id.split("_")
    if len(parts) != 3:
        raise InvalidRequest(f"'input' refers to {item_id}, which is no id of an item here.", param="input")
    try:
        record = await services.responses.get(RESPONSE_PREFIX + parts[1], tenant=tenant)
    except NotFound:
        return {}
    output = (await response_now(services, record))["output"]
    return {item["id"]: item for item in [*record.own_items(), *output]}
