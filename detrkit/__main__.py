"""`python -m detrkit`, as torchrun needs it."""

from detrkit.cli import main

main()
