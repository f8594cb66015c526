"""``python -m nifcore`` is the ``nif`` program."""

from nifcore.cli import main

main()
