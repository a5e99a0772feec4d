"""`python -m raysuite.cli` is `raysuite`."""

from raysuite.cli import main

main()
