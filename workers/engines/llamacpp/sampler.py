"""The sampler chooses tokens from logits in main memory, by the rules and the random numbers of the native engine's
sampler, but without torch. Each row is chosen by itself: nothing of it depends on what else is in its step."""

import math
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from shared.domain.errors import EngineError
from workers.engines.uniform import uniform
from workers.scheduling.sequence import NOTHING, Sampled, SamplingParams, Sequence
from workers.text.grammar import GrammarState, forbid

CANDIDATES = 1024  # sorted first; a row whose limits allow more is sorted whole

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


def choose(logits: Seq[Floats] | Floats, sequences: Seq[Sequence]) -> list[Sampled]:
    """Choose one token for each row; NOTHING if a request's own rules forbid every token, which is its fault and must
    not fail the step. `logits`: float32 [vocabulary] of each, which are not changed. Raises EngineError if the model
    produced NaN or infinite logits."""
    states = {row: s.constraint for row, s in enumerate(sequences) if isinstance(s.constraint, GrammarState)}
    forbidden = dict(zip(states, forbid(list(states.values()), len(logits[0])), strict=True)) if states else {}
    return [_choose(logits[row], sequence, forbidden.get(row)) for row, sequence in enumerate(sequences)]


def _choose(logits: Floats, sequence: Sequence, forbidden: npt.NDArray[np.bool_] | None) -> Sampled:
    sampling = sequence.sampling
    adjusted = _adjusted(logits, sequence, forbidden)
    best = int(adjusted.argmax())
    value = float(adjusted[best])
    if value == -math.inf and (sequence.constraint or sampling.forbids):
        return Sampled(NOTHING)
    if not math.isfinite(value):
        raise EngineError("the model produced NaN or infinite logits")
    token = _draw(adjusted, value, sequence) if sampling.temperature > 0 else best
    return Sampled(token) if sampling.logprobs is None else likelihoods(logits[None], [token], sampling.logprobs)[0]


def _adjusted(logits: Floats, sequence: Sequence, forbidden: npt.NDArray[np.bool_] | None) -> Floats:
    """The logits after penalties, biases, bans and the grammar, in this order; the same array if there are none."""
    sampling = sequence.sampling
    banned, allowed = sequence.banned_next, list(sampling.allowed_token_ids)
    if not (sampling.penalises or sampling.logit_bias or banned or allowed or forbidden is not None):
        return logits
    out = logits.copy()
    if sampling.penalises:
        _penalise(out, sequence)
    for token, bias in sampling.logit_bias:
        out[token] += np.float32(bias)
    out[banned] = -np.inf
    if allowed:
        kept = out[allowed]
        out[:] = -np.inf
        out[allowed] = kept
    if forbidden is not None:
        out[forbidden] = -np.inf
    return out


def _penalise(out: Floats, sequence: Sequence) -> None:
    """Apply CTRL's repetition penalty (Keskar et al. 2019) to prompt and output, and OpenAI's presence and frequency
    penalties to the output alone."""
    sampling = sequence.sampling
    ids = np.array(sequence.ids)
    known = np.unique(ids)
    factor = np.float32(sampling.repetition_penalty)
    out[known] = np.where(out[known] > 0, out[known] / factor, out[known] * factor)
    said, counts = np.unique(ids[sequence.prompt_length :], return_counts=True)
    out[said] -= np.float32(sampling.presence_penalty)
    out[said] -= np.float32(sampling.frequency_penalty) * counts.astype(np.float32)


def _draw(logits: Floats, best: float, sequence: Sequence) -> int:
    """Inverse transform sampling: the first token whose cumulative probability passes the sequence's uniform number.
    `best` is the greatest of the logits."""
    sampling = sequence.sampling
    number = uniform(sampling.seed, sequence.choice_of_prompt, sequence.output_length)
    if not (sampling.top_p < 1 or sampling.top_k):
        return _pick(_weights(logits, best, sampling), number)
    count = min(sampling.top_k or CANDIDATES, len(logits))
    whole = np.float32(0) if sampling.top_k else _weights(logits, best, sampling).sum()
    ids = _best(logits, count)
    weights = _weights(logits[ids], best, sampling)
    if not sampling.top_k and weights.sum() < np.float32(sampling.top_p) * whole:
        ids = np.argsort(-logits, kind="stable")
        weights = _weights(logits[ids], best, sampling)
    total = weights.sum() if sampling.top_k else whole
    outside = np.cumsum(weights) - weights >= np.float32(sampling.top_p) * total
    outside[0] = False
    weights[outside] = 0
    return int(ids[_pick(weights, number)])


def _weights(logits: Floats, best: float, sampling: SamplingParams) -> Floats:
    """The probabilities, but for a common factor: the likeliest token's is 1."""
    weights = np.subtract(logits, np.float32(best))
    weights /= np.float32(sampling.temperature)
    np.exp(weights, out=weights)
    if sampling.min_p:
        weights[weights < np.float32(sampling.min_p)] = 0
    return weights


def _best(logits: Floats, count: int) -> Ids:
    """The ids of the likeliest tokens, the likeliest first."""
    ids = np.argpartition(logits, len(logits) - count)[-count:] if count < len(logits) else np.arange(len(logits))
    return ids[np.lexsort((ids, -logits[ids]))]


def _pick(weights: Floats, number: float) -> int:
    """Draw an index in proportion to the weights; double precision, so that the tail keeps its share."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    drawn = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    return drawn if drawn < len(weights) else int(np.flatnonzero(weights)[-1])


def likelihoods(logits: Floats, tokens: Seq[int], count: int) -> list[Sampled]:
    """The log probabilities of each row's token, and of the `count` likeliest in its place."""
    return [_likelihood(row, token, count) for row, token in zip(logits, tokens, strict=True)]


def _likelihood(logits: Floats, token: int, count: int) -> Sampled:
    best = logits.max()
    norm = best + np.log(np.exp(logits - best).sum(dtype=np.float64))
    ids = _best(logits, count) if count else ()
    return Sampled(token, float(logits[token] - norm), tuple((int(id_), float(logits[id_] - norm)) for id_ in ids))


def score(logits: Floats, sequence: Sequence, start: int) -> None:
    """Record the log probabilities of the prompt's tokens. `logits`: float32 [rows, vocabulary] of its tokens from
    `start` on, each of which predicts the next."""
    stop = min(start + len(logits), sequence.prompt_length - 1)
    tokens = sequence.ids[start + 1 : stop + 1].tolist()
    known = likelihoods(logits[: stop - start], tokens, sequence.sampling.prompt_logprobs or 0)
    sequence.scored |= dict(enumerate(known, start=start + 1))
