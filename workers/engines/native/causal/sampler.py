"""The sampler chooses tokens, for all rows of a step at once. A token's random number depends on (seed, choice,
position) alone, and a row's result on that row alone, so that a seeded request gets the same tokens whatever shares its
batch, and after it moves to another worker."""

import math
from collections.abc import Sequence as Seq

import numpy as np
import torch

from shared.domain.errors import EngineError
from workers.engines.uniform import uniform
from workers.scheduling.sequence import NOTHING, Sampled, SamplingParams, Sequence
from workers.text.grammar import GrammarState, forbid

SCORED = 64  # rows of logits scored at once: vocabularies are large
CANDIDATES = 1024  # sorted first; a row whose limits allow more is sorted whole


@torch.inference_mode()
def choose(logits: torch.Tensor, sequences: Seq[Sequence]) -> list[Sampled]:
    """Choose one token for each row; NOTHING if a request's own rules forbid every token, which is its fault and must
    not fail the step. `logits`: float32 [rows, vocabulary]. Raises EngineError if the model produced NaN or infinite
    logits."""
    if not sequences:
        return []
    adjusted = _adjusted(logits, sequences)
    tokens = adjusted.argmax(-1)
    drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
    if drawn:
        tokens[drawn] = _draw(adjusted[drawn], [sequences[row] for row in drawn])
    best = adjusted.amax(-1)
    chosen = torch.stack([tokens.double(), best.double()]).tolist()  # one wait for the device, not two
    sampled = [Sampled(int(token)) for token in chosen[0]]
    if any(sequence.sampling.logprobs is not None for sequence in sequences):
        _add_logprobs(sampled, logits, sequences)
    for row, value in enumerate(chosen[1]):
        if value == -math.inf and (sequences[row].constraint or sequences[row].sampling.min_tokens):
            sampled[row] = Sampled(NOTHING)
        elif not math.isfinite(value):
            raise EngineError("the model produced NaN or infinite logits")
    return sampled


def _adjusted(logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """Logits after penalties, biases, bans and grammars, in this order; the same tensor if no row asks for any.

    The repetition penalty is CTRL's (Keskar et al. 2019), over prompt and output; presence and frequency penalties are
    OpenAI's, over the output alone.
    """
    out = logits
    for change in (_penalise, _bias, _ban, _constrain):
        out = change(out, logits, sequences)
    return out


def _penalise(out: torch.Tensor, logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    rows = [row for row, sequence in enumerate(sequences) if sequence.sampling.penalises]
    if not rows:
        return out
    out = logits.clone()
    how = [sequences[row].sampling for row in rows]
    known = [np.array(sequences[row].ids) for row in rows]
    said = [ids[sequences[row].prompt_length :] for row, ids in zip(rows, known, strict=True)]
    where, factor = _cells(rows, known, [c.repetition_penalty for c in how], out)
    value = out[where]
    out[where] = torch.where(
        value > 0, value / factor, value * factor
    )  # a token that occurs twice gets the same value twice
    where, presence = _cells(rows, said, [c.presence_penalty for c in how], out)
    out[where] = out[where] - presence
    where, frequency = _cells(rows, said, [c.frequency_penalty for c in how], out)
    return out.index_put_(where, -frequency, accumulate=True)


def _cells(
    rows: list[int], tokens: list["np.ndarray[tuple[int], np.dtype[np.int64]]"], values: list[float], out: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The index of every (row, token), and the row's value for each."""
    counts = [len(each) for each in tokens]
    at = np.repeat(np.array(rows), counts)
    value = np.repeat(np.array(values, dtype=np.float32), counts)
    index = (torch.from_numpy(at).to(out.device), torch.from_numpy(np.concatenate(tokens)).to(out.device))
    return index, torch.from_numpy(value).to(out.device)


def _bias(out: torch.Tensor, logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    cells = [(row, *pair) for row, sequence in enumerate(sequences) for pair in sequence.sampling.logit_bias]
    if not cells:
        return out
    rows, tokens, values = zip(*cells, strict=True)
    bias = torch.tensor(values, dtype=torch.float32, device=out.device)
    return out.index_put((torch.tensor(rows), torch.tensor(tokens)), bias, accumulate=True)


def _ban(out: torch.Tensor, logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    early = [(row, s.sampling.banned) for row, s in enumerate(sequences) if s.output_length < s.sampling.min_tokens]
    cells = [(row, token) for row, banned in early for token in banned]
    if not cells:
        return out
    rows, tokens = zip(*cells, strict=True)
    return out.index_put((torch.tensor(rows), torch.tensor(tokens)), torch.tensor(float("-inf"), device=out.device))


def _constrain(out: torch.Tensor, logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    states = {row: s.constraint for row, s in enumerate(sequences) if isinstance(s.constraint, GrammarState)}
    if not states:
        return out
    rows = list(states)
    forbidden = torch.from_numpy(forbid(list(states.values()), out.shape[1])).to(out.device)
    return out.index_copy(0, torch.tensor(rows, device=out.device), out[rows].masked_fill(forbidden, float("-inf")))


def _draw(logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """Inverse transform sampling: the first token whose cumulative probability passes the row's uniform number."""
    sampling = [sequence.sampling for sequence in sequences]
    probabilities = torch.softmax(logits / _column([c.temperature for c in sampling], logits), -1)
    if any(c.min_p for c in sampling):
        floor = _column([c.min_p for c in sampling], logits) * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < floor, 0)
    points = [uniform(s.sampling.seed, s.choice_of_prompt, s.output_length) for s in sequences]
    numbers = torch.tensor(points, dtype=torch.float64, device=logits.device).unsqueeze(1)
    tokens = torch.empty(len(sequences), dtype=torch.long, device=logits.device)
    limited = [row for row, c in enumerate(sampling) if c.top_p < 1 or c.top_k]
    free = [row for row, c in enumerate(sampling) if not (c.top_p < 1 or c.top_k)]
    if free:
        tokens[free] = _pick(probabilities[free], numbers[free])
    if limited:
        tokens[limited] = _pick_limited(probabilities[limited], numbers[limited], [sampling[row] for row in limited])
    return tokens


def _pick_limited(probabilities: torch.Tensor, numbers: torch.Tensor, sampling: Seq[SamplingParams]) -> torch.Tensor:
    """Choose among the `top_k` likeliest tokens of each row, and of those the likeliest that make up `top_p`. Nothing
    of a row depends on the others, not even the number of candidates that are looked at."""
    size = probabilities.shape[1]
    count = min(CANDIDATES, size)
    total = probabilities.sum(-1, keepdim=True)
    ordered, ids = probabilities.topk(count)
    tokens = _pick_ordered(ordered, ids, total, numbers, sampling)
    enough = (ordered.sum(-1, keepdim=True) >= _column([c.top_p for c in sampling], ordered) * total).tolist()
    long = [row for row, c in enumerate(sampling) if not (0 < c.top_k <= count or (enough[row][0] and not c.top_k))]
    if long and count < size:
        ordered, ids = probabilities[long].sort(dim=-1, descending=True, stable=True)
        tokens[long] = _pick_ordered(ordered, ids, total[long], numbers[long], [sampling[row] for row in long])
    return tokens


def _pick_ordered(
    ordered: torch.Tensor, ids: torch.Tensor, total: torch.Tensor, numbers: torch.Tensor, sampling: Seq[SamplingParams]
) -> torch.Tensor:
    """Choose from `ordered`, `ids` [rows, n], the likeliest first; `total` [rows, 1] is the weight of all tokens of the
    row."""
    top_k = _column([c.top_k or ordered.shape[1] for c in sampling], ordered)
    ordered = ordered.masked_fill(torch.arange(ordered.shape[1], device=ordered.device) >= top_k, 0)
    limited = torch.tensor([c.top_k > 0 for c in sampling], device=ordered.device).unsqueeze(1)
    total = torch.where(limited, ordered.sum(-1, keepdim=True), total)
    outside = ordered.cumsum(-1) - ordered >= _column([c.top_p for c in sampling], ordered) * total
    outside[:, 0] = False
    return ids.gather(1, _pick(ordered.masked_fill(outside, 0), numbers).unsqueeze(1)).squeeze(1)


def _pick(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Draw indices in proportion to `weights` [rows, n]; double precision, so that the tail keeps its share."""
    cumulative = weights.double().cumsum(-1)
    drawn = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True).squeeze(1)
    last = (weights > 0).double().cumsum(-1).argmax(-1)
    return torch.minimum(drawn, last)


def _column(values: Seq[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).unsqueeze(1)


def _add_logprobs(sampled: list[Sampled], logits: torch.Tensor, sequences: Seq[Sequence]) -> None:
    """Add logprobs in place to the rows that ask for them."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.sampling.logprobs is not None]
    counts = [sequences[row].sampling.logprobs or 0 for row in rows]
    for row, known in zip(rows, likelihoods(logits[rows], [sampled[row].token for row in rows], counts), strict=True):
        sampled[row] = known


def likelihoods(logits: torch.Tensor, tokens: Seq[int], counts: Seq[int]) -> list[Sampled]:
    """The log probabilities of each row's token, and of that many of the likeliest in its place."""
    logprobs = torch.log_softmax(logits, -1)
    chosen = torch.tensor(tokens, device=logits.device).unsqueeze(1)
    own = logprobs.gather(1, chosen).squeeze(1).tolist()
    values, ids = (each.tolist() for each in logprobs.topk(max(counts)))
    return [
        Sampled(token, own[at], tuple(zip(ids[at][:count], values[at][:count], strict=True)))
        for at, (token, count) in enumerate(zip(tokens, counts, strict=True))
    ]


@torch.inference_mode()
def score(logits: torch.Tensor, sequence: Sequence, start: int) -> None:
    """Record the log probabilities of the prompt's tokens. `logits`: float32 [rows, vocabulary] of its tokens from
    `start` on, each of which predicts the next."""
    count = sequence.sampling.prompt_logprobs or 0
    stop = min(start + len(logits), sequence.prompt_length - 1)
    for begin in range(start, stop, SCORED):
        end = min(begin + SCORED, stop)
        tokens = sequence.ids[begin + 1 : end + 1].tolist()
        known = likelihoods(logits[begin - start : end - start].float(), tokens, [count] * len(tokens))
        sequence.scored |= dict(enumerate(known, start=begin + 1))
