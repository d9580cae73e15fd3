"""The conversation that a response reads: what is stored before it, and its own items."""

from api.schemas.response import ResponseInput
from api.serving.conversations import to_go_on
from api.serving.response_items import response_now, with_references
from api.serving.services import Services
from api.stores.responses import History, items_of
from shared.domain.errors import InvalidRequest, NotFound


async def history_of(services: Services, body: ResponseInput, *, tenant: str) -> History:
    """Read what the request continues, and what it refers to. Raises NotFound, also for another tenant's, and
    InvalidRequest for a response without an answer."""
    own = await with_references(services, items_of(body), tenant=tenant)
    if body.conversation_id:
        try:
            conversation = await services.conversations.get(body.conversation_id, tenant=tenant)
        except NotFound as error:
            raise NotFound(str(error), param="conversation") from error
        contents = await to_go_on(services, conversation)
        return History(before=contents.items, own=own, conversation=conversation, last_ms=contents.last_ms)
    if body.previous_response_id is None:
        return History(own=own)
    try:
        record = await services.responses.get(body.previous_response_id, tenant=tenant)
    except NotFound as error:
        raise NotFound(str(error), param="previous_response_id") from error
    now = await response_now(services, record)
    if now["status"] not in ("completed", "incomplete"):
        message = f"The previous response is {now['status']}; only one with an answer can be continued."
        raise InvalidRequest(message, param="previous_response_id")
    return History(before=[*record.items, *now["output"]], own=own)
