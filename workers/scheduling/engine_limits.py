"""What a model on a device can hold: the same for every engine, known once it is loaded."""

from dataclasses import dataclass

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """`context_length`: prompt plus answer, in tokens. `sequences_max`: how many fit into a batch. `batch_tokens_max`:
    tokens of one step. `blocks` of BLOCK_SIZE tokens are all that sequences can hold together, 0 for as many as they
    can use; one sequence of `context_length` must fit. `prefix_cache`: blocks may be shared. `vocabulary`: token ids
    are below it."""

    sequences_max: int
    batch_tokens_max: int
    context_length: int
    vocabulary: int
    blocks: int = 0
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        if not self.blocks:
            object.__setattr__(self, "blocks", self.sequences_max * blocks_for(self.context_length))


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE)
