"""Choosing tokens, all rows of a step at once. The random number of a token depends on (seed, choice, position) alone,
so a seeded request gives the same tokens whatever shares its batch, and after it moves to another worker."""

import hashlib
import struct
from collections.abc import Sequence as Seq

import torch

from workers.sequence import Sequence


def choose(logits: torch.Tensor, sequences: Seq[Sequence]) -> list[int]:
    """One token id for each row. `logits`: float32 [rows, vocabulary]."""
    logits = _adjusted(logits, sequences)
    greedy = logits.argmax(-1)
    drawn = [row for row, sequence in enumerate(sequences) if sequence.choosing.temperature > 0]
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        greedy[index] = _draw(logits[index], [sequences[row] for row in drawn])
    return greedy.tolist()


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1), from a keyed hash: no generator runs along, so nothing has to be resumed."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, choice, position), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) / float(1 << 53)


def _adjusted(logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """Logits after penalties, biases and bans. Rows that ask for none are passed on as they are.

    Repetition as in CTRL (Keskar et al. 2019), over prompt and output; presence and frequency as OpenAI defines them,
    over the output alone.
    """
    rows = [row for row, sequence in enumerate(sequences) if _asks(sequence)]
    if not rows:
        return logits
    logits = logits.clone()
    for row in rows:
        choosing, sequence = sequences[row].choosing, sequences[row]
        if choosing.penalises:
            logits[row] = _penalised(logits[row], sequence)
        for token, bias in choosing.logit_bias:
            logits[row, token] += bias
        if len(sequence.output) < choosing.min_tokens:
            logits[row, list(choosing.banned)] = float("-inf")
    return logits


def _asks(sequence: Sequence) -> bool:
    choosing = sequence.choosing
    return choosing.penalises or bool(choosing.logit_bias) or len(sequence.output) < choosing.min_tokens


def _penalised(logits: torch.Tensor, sequence: Sequence) -> torch.Tensor:
    choosing, size = sequence.choosing, logits.shape[0]
    said = torch.tensor(sequence.output, dtype=torch.long, device=logits.device).bincount(minlength=size)[:size]
    known = torch.tensor([*sequence.prompt, *sequence.output], dtype=torch.long, device=logits.device)
    seen = known.bincount(minlength=size)[:size] > 0
    factor = choosing.repetition_penalty
    repeated = torch.where(logits > 0, logits / factor, logits * factor)
    logits = torch.where(seen, repeated, logits)
    return logits - choosing.frequency_penalty * said - choosing.presence_penalty * (said > 0)


def _draw(logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """Inverse transform sampling: the first token whose cumulative probability passes the row's uniform number."""
    choosing = [sequence.choosing for sequence in sequences]
    temperature = torch.tensor([c.temperature for c in choosing], device=logits.device).unsqueeze(1)
    points = [uniform(s.choosing.seed, s.choice, len(s.output)) for s in sequences]
    numbers = torch.tensor(points, dtype=torch.float64, device=logits.device).unsqueeze(1)
    probabilities = torch.softmax(logits / temperature, -1)
    if any(c.min_p for c in choosing):
        min_p = torch.tensor([c.min_p for c in choosing], device=logits.device).unsqueeze(1)
        probabilities = probabilities.masked_fill(probabilities < min_p * probabilities.amax(-1, keepdim=True), 0)
    if all(c.top_p >= 1 and not c.top_k for c in choosing):
        return _pick(probabilities, numbers)
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    top_p = torch.tensor([c.top_p for c in choosing], device=logits.device).unsqueeze(1)
    top_k = torch.tensor([c.top_k or logits.shape[1] for c in choosing], device=logits.device).unsqueeze(1)
    before = ordered.cumsum(-1) - ordered
    rank = torch.arange(logits.shape[1], device=logits.device)
    outside = (before >= top_p) | (rank >= top_k)
    outside[:, 0] = False
    picked: torch.Tensor = ids.gather(1, _pick(ordered.masked_fill(outside, 0), numbers).unsqueeze(1)).squeeze(1)
    return picked


def _pick(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Indices drawn in proportion to `weights` [rows, n]; double precision, so that the tail keeps its share."""
    cumulative = weights.double().cumsum(-1)
    drawn = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True).squeeze(1)
    last = (weights > 0).double().cumsum(-1).argmax(-1)
    return torch.minimum(drawn, last)
