"""`python -m bloomlab` is the command line."""

from bloomlab.cli import main

main()
