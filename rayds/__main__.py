"""`python -m rayds` is `rayds`."""

from rayds.cli.main import main

main()
