"""vLLM's processes sleep while they wait for each other, where the model is computed on the CPU.

They hand each other a step in shared memory, and look for it again and again for a second after the last one, yielding
the processor between two looks. So a waiting process keeps a core busy, of which there may be two, and on a Linux of
version 6.18 others that wanted to run on it were seen to wait for up to eight seconds: the worker, the API, Redis. A
sleep that is much shorter than a step leaves the core to them, and to the threads that compute."""

import ctypes
import time

from vllm.distributed.device_communicators import shm_broadcast
from vllm.platforms import current_platform

SLEEP_S = 50e-6
PR_SET_TIMERSLACK = 29
SLACK_NS = 1_000  # else the kernel sleeps twice as long as asked


def sleep_between_looks() -> None:
    """Let this process sleep where vLLM would yield. Does nothing on other devices, whose hosts have cores to spare, or
    for a vLLM that waits in another way."""
    if not current_platform.is_cpu() or not hasattr(shm_broadcast, "sched_yield"):
        return
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_TIMERSLACK, SLACK_NS)
    shm_broadcast.sched_yield = _sleep


def _sleep() -> None:
    time.sleep(SLEEP_S)
