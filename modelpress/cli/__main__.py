"""`python -m modelpress.cli`: the same as the command `modelpress`."""

from . import main

main()
