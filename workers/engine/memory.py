"""How much main memory a process may still take: what the machine has free, within its container's limit."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")  # version 2, which container engines use now


def memory_available(cgroup: Path = CGROUP) -> int:
    """Bytes."""
    free: int = psutil.virtual_memory().available
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free
