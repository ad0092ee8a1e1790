"""`python -m mpclip` is the command `mpclip`."""

from mpclip.cli import main

main()
