"""A host starts a worker while another one still ends. The new worker imports its libraries meanwhile, and takes no
memory for its model before that of the other one is free."""

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

log = logging.getLogger(__name__)
AFTER = "HOSTED_AFTER"  # the processes that are waited for
LEFT_FILE = "HOSTED_LEFT_FILE"  # is written by a worker that has nothing more to do but to end
LONGEST_S = 30.0  # their host kills them sooner, if it lives


def after(processes: Iterable[tuple[int, float]]) -> dict[str, str]:
    """Return the environment of a worker that waits for these processes: the id of each, and when it was created, in
    seconds since 1970."""
    return {AFTER: ",".join(f"{pid}:{created_s}" for pid, created_s in processes)}


def wait_for_predecessors(environment: Mapping[str, str] = os.environ, longest_s: float = LONGEST_S) -> None:
    """Block until the processes that the environment names have gone."""
    named = [each.split(":") for each in environment.get(AFTER, "").split(",") if each]
    there = []
    for pid, created_s in named:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(created_s)) < 1:  # else it is a later one of the same id
                there.append(process)
    if late := psutil.wait_procs(there, timeout=longest_s)[1]:
        log.warning("loading beside workers that do not end", extra={"pids": [each.pid for each in late]})


def tell_successors(environment: Mapping[str, str] = os.environ) -> None:
    """Say that this process holds no job any more, and ends."""
    if path := environment.get(LEFT_FILE):
        with suppress(OSError):
            Path(path).touch()
