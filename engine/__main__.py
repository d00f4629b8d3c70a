"""`python -m simclr_engine` runs the console script."""

from .cli.main import main

main()
