"""The size of a key-value cache follows from the memory that is free."""

import logging
from dataclasses import replace

from shared.domain.errors import SettingsError
from workers.scheduling.engine_limits import BLOCK_SIZE, EngineLimits

log = logging.getLogger(__name__)


def fitted(limits: EngineLimits, bytes_per_block: int, room: int) -> EngineLimits:
    """The limits with as many blocks as the sequences can use and the room holds, and a context that fits into them.
    Raises SettingsError if the room, in bytes, holds no block."""
    blocks = min(limits.blocks, room // bytes_per_block)
    if not blocks:
        raise SettingsError("PENSTOCK_KV_CACHE_GIB: there is no memory for the key-value cache of a single token")
    context = min(limits.context_length, blocks * BLOCK_SIZE)
    if context < limits.context_length:
        log.warning("the key-value cache is small: shorter contexts", extra={"context_length": context})
    return replace(limits, blocks=blocks, context_length=context)
