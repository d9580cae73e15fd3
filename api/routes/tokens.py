"""`POST /v1/tokenize`, `/v1/detokenize`, `/v1/token_count`: answered by a worker of the model, which alone knows."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import whole
from api.formats.common import WholeOnly
from api.formats.tokens import DetokenizedText, TokenCount, TokenList
from api.house import House, house_of
from api.json_route import JsonRoute
from api.schemas.tokens import DetokenizeRequest, TokenCountRequest, TokenizeRequest
from api.terms import Terms, terms_of
from api.view import view_of
from api.work import Work

router = APIRouter(route_class=JsonRoute)
WithTerms = Annotated[Terms, Depends(terms_of)]
InHouse = Annotated[House, Depends(house_of)]


@router.post("/v1/tokenize", response_model=None)
async def tokenize(body: TokenizeRequest, request: Request, terms: WithTerms, house: InHouse) -> Response:
    """The token ids of a text, or of a chat as the model's template writes it."""
    job = await house.admission.tokens(body, terms, texts=body.return_token_strs)
    length = (await house.directory.model(body.model)).context_length
    work = Work(job, view_of(job), WholeOnly(lambda made: TokenList(made, context_length=length)))
    return await whole(house, work, terms, request)


@router.post("/v1/token_count", response_model=None)
async def count_tokens(body: TokenCountRequest, request: Request, terms: WithTerms, house: InHouse) -> Response:
    """How many tokens a text or a chat is, and whether it and `max_tokens` more fit the model."""
    job = await house.admission.tokens(body, terms)
    length = (await house.directory.model(body.model)).context_length
    formatter = WholeOnly(lambda made: TokenCount(made, context_length=length, max_tokens=body.max_tokens))
    return await whole(house, Work(job, view_of(job), formatter), terms, request)


@router.post("/v1/detokenize", response_model=None)
async def detokenize(body: DetokenizeRequest, request: Request, terms: WithTerms, house: InHouse) -> Response:
    """The text of token ids."""
    job = await house.admission.text_of(body, terms)
    return await whole(house, Work(job, view_of(job), WholeOnly(DetokenizedText)), terms, request)
