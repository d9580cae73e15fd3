"""`python -m tests.simulation FIRST [LAST]` runs the histories of these seeds and prints their faults. The exit status
is 1 if there are any."""

import logging
import sys

from tests.simulation.histories import run


def main(first: int, last: int) -> int:
    logging.disable(logging.CRITICAL)
    wrong = {seed: found for seed in range(first, last + 1) if (found := run(seed))}
    for seed, found in wrong.items():
        sys.stdout.write(f"seed {seed}: {'; '.join(found)}\n")
    sys.stdout.write(f"{len(wrong)} of {last - first + 1} histories are wrong\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[-1])))
