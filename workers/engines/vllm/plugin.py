"""vLLM calls `start` in each of its processes, as a plug-in of its group `vllm.general_plugins`."""

from workers.engines.vllm.parent_death import end_with_parent, of_a_worker


def start() -> None:
    """Let this process end with the worker, and sleep while it waits. Does nothing in the worker itself, or in a vLLM
    that Penstock does not run."""
    if of_a_worker():
        from workers.engines.vllm.short_sleeps import sleep_between_looks  # imports vLLM

        end_with_parent()
        sleep_between_looks()
