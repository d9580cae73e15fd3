"""`python -m cli`: what `penstock` runs, for processes started by `penstock up`."""

from cli.main import run

run()
