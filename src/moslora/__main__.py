"""``python -m moslora``: what a launcher of several processes starts."""

from moslora.cli import main

main()
