"""The submissions of scores and pooled vectors, as vLLM's clients ask for them, and of FastChat's token checks."""

from api.formats.common import WholeOnly
from api.formats.score import PooledCollector, ScoreCollector
from api.http.request_options import RequestOptions
from api.schemas.base import listed
from api.schemas.score import PoolingRequest, ScoreRequest
from api.serving.services import Services
from api.serving.submission import Submission
from shared.domain.job import Kind


async def score_submissions(services: Services, body: ScoreRequest, options: RequestOptions) -> list[Submission]:
    """Submit the scores: one job for one text beside others, or one for each pair."""
    if pairs := body.pairs:
        return [await _scores(services, body, options, query, [text]) for query, text in pairs]
    return [await _scores(services, body, options, body.query, body.texts)]


async def _scores(
    services: Services, body: ScoreRequest, options: RequestOptions, query: str, texts: list[str]
) -> Submission:
    inputs = [query, *texts]
    request = {"inputs": inputs, "dimensions": None, "truncate": body.truncate_prompt_tokens, "rank": True}
    job = await services.admission.job("score", body.model, Kind.EMBEDDING, options, request=request, user=body.user)
    return Submission(job, WholeOnly(lambda made: ScoreCollector(made, texts, top_n=None, with_texts=False)))


async def pooling_submission(services: Services, body: PoolingRequest, options: RequestOptions) -> Submission:
    inputs = listed(body.input)
    request = {"inputs": inputs, "dimensions": body.dimensions, "truncate": body.truncate_prompt_tokens}
    job = await services.admission.job("pool", body.model, Kind.EMBEDDING, options, request=request, user=body.user)
    in_base64 = body.encoding_format == "base64"
    return Submission(job, WholeOnly(lambda made: PooledCollector(made, base64=in_base64)))
