"""`python -m cli` is the command `penstock`; `penstock up` starts its child processes this way."""

from cli.main import run

run()
