"""`python -m simclr_engine` is the console script."""

from .cli.main import main

main()
