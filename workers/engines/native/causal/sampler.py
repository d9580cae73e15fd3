"""The sampler chooses tokens, for all rows of a step at once. A token's random number depends on (seed, choice,
position) alone, and a row's result on that row alone, so that a seeded request gets the same tokens whatever shares its
batch, and after it moves to another worker."""

import math
from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np
import torch

from shared.domain.errors import EngineError
from workers.engines.native.transfer import Numbers, uploaded, uploaded_together
from workers.engines.uniform import uniform
from workers.scheduling.sequence import NOTHING, Sampled, SamplingParams, Sequence
from workers.text.grammar import GrammarState, forbid

SCORED = 64  # rows of logits scored at once: vocabularies are large
CANDIDATES = 1024  # sorted first; a row whose limits allow more is sorted whole


@torch.inference_mode()
def choose(logits: torch.Tensor, sequences: Seq[Sequence]) -> list[Sampled]:
    """Choose one token for each row; NOTHING if a request's own rules forbid every token, which is its fault and must
    not fail the step. `logits`: float32 [rows, vocabulary]. Raises EngineError if the model produced NaN or infinite
    logits. Waits for the device once, and a second time if a row needs more than the candidates."""
    if not sequences:
        return []
    adjusted = _adjusted(logits, sequences)
    choices = _choices(adjusted, logits, sequences, whole=False)
    if again := [row for row, choice in enumerate(choices) if not choice.enough]:
        index, those = _index(again, logits), [sequences[row] for row in again]
        redrawn = _choices(adjusted[index], logits[index], those, whole=True)
        for row, choice in zip(again, redrawn, strict=True):
            choices[row] = choice
    return [_checked(choice, sequence) for choice, sequence in zip(choices, sequences, strict=True)]


class Choice(NamedTuple):
    """A chosen token; the best logit of its row, after what the request changes; and whether the candidates were
    enough to choose from."""

    sampled: Sampled
    best: float
    enough: bool


def _choices(adjusted: torch.Tensor, logits: torch.Tensor, sequences: Seq[Sequence], *, whole: bool) -> list[Choice]:
    """Choose and wait for the tokens, with all that is to be known of them in one transfer. If `whole`, rows are sorted
    whole."""
    tokens, columns = adjusted.argmax(-1), []
    drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
    if drawn:
        at = _index(drawn, logits)
        found, enough = _draw(_selected(adjusted, drawn, at), [sequences[row] for row in drawn], whole=whole)
        tokens = tokens.index_copy(0, at, found)
        columns = [torch.ones(len(sequences), dtype=torch.double, device=logits.device).index_copy(0, at, enough)]
    asked = [row for row, sequence in enumerate(sequences) if sequence.sampling.logprobs is not None]
    counts = [sequences[row].sampling.logprobs or 0 for row in asked]
    flat = torch.cat([tokens.double(), adjusted.amax(-1).double(), *columns])
    if asked:
        at = _index(asked, logits)
        flat = torch.cat([flat, _likely(_selected(logits, asked, at), tokens[at], max(counts)).flatten()])
    told = flat.tolist()
    rows = len(sequences)
    enough_of = [bool(each) for each in told[2 * rows : 3 * rows]] if columns else [True] * rows
    sampled = [Sampled(int(token)) for token in told[:rows]]
    likely = told[(2 + len(columns)) * rows :]
    width = len(likely) // len(asked) if asked else 0
    for number, (row, count) in enumerate(zip(asked, counts, strict=True)):
        sampled[row] = _scored(sampled[row].token, likely[number * width : (number + 1) * width], count)
    return [Choice(*each) for each in zip(sampled, told[rows : 2 * rows], enough_of, strict=True)]


def _checked(choice: Choice, sequence: Sequence) -> Sampled:
    if choice.best == -math.inf and (sequence.constraint or sequence.sampling.forbids):
        return Sampled(NOTHING)
    if not math.isfinite(choice.best):
        raise EngineError("the model produced NaN or infinite logits")
    return choice.sampled


def _adjusted(logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """Logits after penalties, biases, bans, allowances and grammars, in this order; the same tensor if no row asks for
    any.

    The repetition penalty is CTRL's (Keskar et al. 2019), over prompt and output; presence and frequency penalties are
    OpenAI's, over the output alone.
    """
    out = logits
    for change in (_penalise, _bias, _ban, _allow, _constrain):
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
    where, counts = _cells(rows, known, out)
    factor = _spread([c.repetition_penalty for c in how], counts, out)
    value = out[where]
    out[where] = torch.where(
        value > 0, value / factor, value * factor
    )  # a token that occurs twice gets the same value twice
    where, counts = _cells(rows, said, out)
    out[where] = out[where] - _spread([c.presence_penalty for c in how], counts, out)
    frequency = _spread([c.frequency_penalty for c in how], counts, out)
    return out.index_put_(where, -frequency, accumulate=True)


def _cells(
    rows: list[int], tokens: Seq[Numbers], like: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor], list[int]]:
    """The index of every (row, token), and how many each row has."""
    counts = [len(each) for each in tokens]
    at = np.repeat(np.array(rows), counts)
    row, token = uploaded_together([at, np.concatenate(tokens)], like.device)
    return (row, token), counts


def _spread(values: Seq[float], counts: list[int], like: torch.Tensor) -> torch.Tensor:
    """A row's value for each of its cells."""
    return uploaded(np.repeat(np.array(values, dtype=np.float32), counts), like.device)


def _bias(out: torch.Tensor, logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    cells = [(row, *pair) for row, sequence in enumerate(sequences) for pair in sequence.sampling.logit_bias]
    if not cells:
        return out
    rows, tokens, values = zip(*cells, strict=True)
    bias = uploaded(np.array(values, dtype=np.float32), out.device)
    return out.index_put((_index(rows, out), _index(tokens, out)), bias, accumulate=True)


def _ban(out: torch.Tensor, logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    cells = [(row, token) for row, sequence in enumerate(sequences) for token in sequence.banned_next]
    if not cells:
        return out
    rows, tokens = zip(*cells, strict=True)
    return out.index_put((_index(rows, out), _index(tokens, out)), out.new_full((), float("-inf")))


def _allow(out: torch.Tensor, logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """Forbid all tokens but those that a row allows, if it names any."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.sampling.allowed_token_ids]
    if not rows:
        return out
    cells = [(row, token) for row in rows for token in sequences[row].sampling.allowed_token_ids]
    index = tuple(_index(column, out) for column in zip(*cells, strict=True))
    return out.index_fill(0, _index(rows, out), float("-inf")).index_put(index, out[index])


def _constrain(out: torch.Tensor, logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    states = {row: s.constraint for row, s in enumerate(sequences) if isinstance(s.constraint, GrammarState)}
    if not states:
        return out
    rows = list(states)
    forbidden = uploaded(forbid(list(states.values()), out.shape[1]), out.device)
    at = _index(rows, out)
    return out.index_copy(0, at, out[at].masked_fill(forbidden, float("-inf")))


def _draw(logits: torch.Tensor, sequences: Seq[Sequence], *, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse transform sampling: the first token whose cumulative probability passes the row's uniform number. Returns
    int64 [rows], and double [rows], 0 where more than the candidates are needed."""
    sampling = [sequence.sampling for sequence in sequences]
    points = [uniform(s.sampling.seed, s.choice_of_prompt, s.output_length) for s in sequences]
    numbers = _columns(sampling, points, logits)
    probabilities = torch.softmax(logits / numbers[0].float(), -1)
    if any(c.min_p for c in sampling):
        floor = numbers[1].float() * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < floor, 0)
    limited = [row for row, c in enumerate(sampling) if c.top_p < 1 or c.top_k]
    free = [row for row, c in enumerate(sampling) if not (c.top_p < 1 or c.top_k)]
    tokens = torch.empty(len(sequences), dtype=torch.long, device=logits.device)
    enough = torch.ones(len(sequences), dtype=torch.double, device=logits.device)
    if free:
        at = _index(free, logits)
        picked = _pick(_selected(probabilities, free, at), _selected(numbers[2], free, at))
        tokens = tokens.index_copy(0, at, picked)
    if limited:
        at = _index(limited, logits)
        limits = _Limits(*(_selected(column, limited, at) for column in numbers[2:]))
        picked, sufficed = _pick_limited(_selected(probabilities, limited, at), limits, whole=whole)
        tokens, enough = tokens.index_copy(0, at, picked), enough.index_copy(0, at, sufficed.double())
    return tokens, enough


class _Limits(NamedTuple):
    """The limits of each row's choice, as columns [rows, 1] of doubles: its uniform number, `top_p` and `top_k`."""

    numbers: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor


def _columns(sampling: Seq[SamplingParams], points: list[float], like: torch.Tensor) -> list[torch.Tensor]:
    """Columns [rows, 1] of doubles: temperatures, `min_p`, the uniform numbers, `top_p` and `top_k`."""
    given = [[c.temperature for c in sampling], [c.min_p for c in sampling], points]
    given += [[c.top_p for c in sampling], [float(c.top_k) for c in sampling]]
    return list(uploaded(np.array(given), like.device).unsqueeze(-1).unbind())


def _pick_limited(probabilities: torch.Tensor, limits: _Limits, *, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose among the `top_k` likeliest tokens of each row, and of those the likeliest that make up `top_p`. Nothing
    of a row depends on the others, not even the number of candidates that are looked at. Returns also where the
    candidates were enough; if `whole`, all tokens are candidates."""
    size = probabilities.shape[1]
    total = probabilities.sum(-1, keepdim=True)
    if whole or size <= CANDIDATES:
        ordered, ids = (
            probabilities.sort(dim=-1, descending=True, stable=True) if size > CANDIDATES else probabilities.topk(size)
        )
        picked = _pick_ordered(ordered, ids, total, limits)
        return picked, torch.ones_like(picked)
    ordered, ids = probabilities.topk(CANDIDATES)
    sum_enough = ordered.sum(-1, keepdim=True) >= limits.top_p.float() * total
    enough = torch.where(limits.top_k > 0, limits.top_k <= CANDIDATES, sum_enough)
    return _pick_ordered(ordered, ids, total, limits), enough.squeeze(1)


def _pick_ordered(ordered: torch.Tensor, ids: torch.Tensor, total: torch.Tensor, limits: _Limits) -> torch.Tensor:
    """Choose from `ordered`, `ids` [rows, n], the likeliest first; `total` [rows, 1] is the weight of all tokens of the
    row."""
    limited, width = limits.top_k > 0, ordered.shape[1]
    beyond = limited & (torch.arange(width, device=ordered.device) >= limits.top_k)
    ordered = ordered.masked_fill(beyond, 0)
    total = torch.where(limited, ordered.sum(-1, keepdim=True), total)
    outside = ordered.cumsum(-1) - ordered >= limits.top_p.float() * total
    outside[:, 0] = False
    return ids.gather(1, _pick(ordered.masked_fill(outside, 0), limits.numbers).unsqueeze(1)).squeeze(1)


def _pick(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Draw indices in proportion to `weights` [rows, n]; double precision, so that the tail keeps its share."""
    cumulative = weights.double().cumsum(-1)
    drawn = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True).squeeze(1)
    last = (weights > 0).double().cumsum(-1).argmax(-1)
    return torch.minimum(drawn, last)


def _index(rows: Seq[int], like: torch.Tensor) -> torch.Tensor:
    return uploaded(np.array(rows, dtype=np.int64), like.device)


def _selected(tensor: torch.Tensor, rows: Seq[int], at: torch.Tensor) -> torch.Tensor:
    """The rows at the index `at`, without a copy if they are all; they are in order."""
    return tensor if len(rows) == len(tensor) else tensor[at]


def likelihoods(logits: torch.Tensor, tokens: Seq[int], counts: Seq[int]) -> list[Sampled]:
    """The log probabilities of each row's token, and of that many of the likeliest in its place."""
    known = _likely(logits, _index(tokens, logits), max(counts)).tolist()
    return [_scored(token, row, count) for token, row, count in zip(tokens, known, counts, strict=True)]


def _likely(logits: torch.Tensor, tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Double [rows, 1 + 2 * count]: the log probability of each row's token, then those of its likeliest tokens, then
    these tokens."""
    logprobs = torch.log_softmax(logits, -1)
    values, ids = logprobs.topk(count)
    own = logprobs.gather(1, tokens.unsqueeze(1))
    return torch.cat([own.double(), values.double(), ids.double()], 1)


def _scored(token: int, likely: Seq[float], count: int) -> Sampled:
    """A token with its row of `_likely`, of which `count` tokens were asked for."""
    most = len(likely) // 2
    ids = map(int, likely[1 + most : 1 + most + count])
    return Sampled(token, likely[0], tuple(zip(ids, likely[1 : 1 + count], strict=True)))


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
