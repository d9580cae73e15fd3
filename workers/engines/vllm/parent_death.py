"""Ends vLLM's processes when the worker's process is gone. A killed worker would leave them running, with the device's
memory. vLLM calls `end_with_parent` in each of its processes: see plugin.py."""

import ctypes
import os
import signal

WORKER_PID = "PENSTOCK_VLLM_WORKER_PID"  # inherited by the processes that vLLM starts; no other vLLM has it
PR_SET_PDEATHSIG = 1


def announce() -> None:
    """Let the processes that this one starts end with it."""
    os.environ[WORKER_PID] = str(os.getpid())


def of_a_worker() -> bool:
    """True in a process that vLLM started for a worker of Penstock; False in the worker itself."""
    return _worker() not in (0, os.getpid())


def end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies. Does nothing in the worker itself, in a vLLM that
    Penstock does not run, or on a system without such a request."""
    if not of_a_worker():
        return
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not _exists(_worker()):  # it died before the request
        os._exit(1)


def _worker() -> int:
    return int(os.environ.get(WORKER_PID, "0"))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
