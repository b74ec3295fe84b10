"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import sys

from tqdm import tqdm

QUIET_SECONDS = 10.0
"""Seconds between two lines where nobody watches."""


def bar(description: str, total: int, unit: str, done: int = 0) -> "tqdm[None]":
    """A progress bar on stderr with rate and ETA; `done` units count as finished before."""
    watched = sys.stderr.isatty()
    return tqdm(
        desc=description,
        total=total,
        initial=done,
        unit=unit,
        mininterval=0.2 if watched else QUIET_SECONDS,
        maxinterval=1.0 if watched else QUIET_SECONDS,
        ascii=not watched,
        ncols=None if watched else 80,
        file=sys.stderr,
        dynamic_ncols=watched,
    )
