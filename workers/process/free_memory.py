"""The main memory that is free, in bytes."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")  # cgroups version 2, as container engines use them


def memory_available(cgroup: Path = CGROUP) -> int:
    """The bytes that are free on the machine, within the container's limit."""
    free: int = psutil.virtual_memory().available
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free
