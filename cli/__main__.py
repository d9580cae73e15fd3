"""`python -m cli` is the command `penstock`; `penstock up` starts its child processes this way."""

from cli.main import run

if __name__ == "__main__":  # processes that an engine spawns import this module again
    run()
