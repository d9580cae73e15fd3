"""The limits of a model on its device: the same for every engine, known once the model is loaded."""

from dataclasses import dataclass

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """`context_length` counts prompt and answer, in tokens. A batch has at most `sequences_max` sequences, a step at
    most `batch_tokens_max` tokens. All sequences together hold at most `blocks` of BLOCK_SIZE tokens, and one of
    `context_length` must fit; 0 means as many as they can use. `prefix_cache` allows blocks to be shared; those that no
    sequence uses keep their content for prompts to come, at most `idle_blocks_max` of them (None: all). Token ids are
    below `vocabulary`."""

    sequences_max: int
    batch_tokens_max: int
    context_length: int
    vocabulary: int
    blocks: int = 0
    prefix_cache: bool = True
    idle_blocks_max: int | None = None

    def __post_init__(self) -> None:
        if not self.blocks:
            object.__setattr__(self, "blocks", self.sequences_max * blocks_for(self.context_length))


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE)
