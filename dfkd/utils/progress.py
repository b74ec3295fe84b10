"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import sys
import time
from typing import Literal, Protocol, Self, TypeAlias

from tqdm import tqdm

from dfkd.errors import printable

QUIET_SECONDS = 10.0
"""Seconds between two lines in a log."""


class Bar(Protocol):
    """The part of tqdm's interface that Ray's bar, which prints on the driver, has too."""

    def update(self, n: int) -> object:
        """Advance by `n` units."""

    def close(self) -> object:
        """Leave the last state on the screen."""


class Closing:
    """A context manager that calls `close` at the end of its block, also after an error."""

    def close(self) -> None:
        """Free the resources."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def say(text: str) -> None:
    """Print a line on stderr, above the progress bar if there is one."""
    tqdm.write(printable(text), file=sys.stderr)


class LineBar(Closing):
    """Prints a line on stderr every ten seconds and at the end, for logs and pipes.

    It has the part of tqdm's interface that is used here.
    """

    def __init__(self, description: str, total: int, unit: str, done: int = 0) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.count = self.initial = done
        self.text = ""
        self.started = self.printed = time.monotonic()
        self._shown: tuple[int, str] | None = None

    def update(self, n: int = 1) -> None:
        """See `Bar.update`."""
        self.count += n
        if time.monotonic() - self.printed > QUIET_SECONDS:
            self._print()

    def set_postfix_str(self, text: str, refresh: Literal[False]) -> None:
        """Show `text` behind the rate from the next line on."""
        self.text = text

    def close(self) -> None:
        """See `Bar.close`."""
        # The last update may just have printed the same line.
        if self._shown != (self.count, self.text):
            self._print()

    def _print(self) -> None:
        """Print the present state in a line of its own."""
        self.printed, self._shown = time.monotonic(), (self.count, self.text)
        meter = tqdm.format_meter(
            self.count,
            self.total,
            self.printed - self.started,
            ncols=80,
            prefix=self.description,
            ascii=True,
            unit=self.unit,
            unit_scale=self.unit == "B",
            initial=self.initial,
            postfix=self.text,
        )
        # Ray Train's own `print` of a rank would log the line once more.
        sys.stderr.write(f"{meter}\n")
        sys.stderr.flush()


Progress: TypeAlias = tqdm | LineBar


def bar(description: str, total: int, unit: str, done: int = 0) -> Progress:
    """A progress bar on stderr with rate and ETA; `done` units were finished earlier.

    Bytes (unit `B`) are shown as kB, MB and GB.
    """
    if not sys.stderr.isatty():
        return LineBar(description, total, unit, done)
    return tqdm(
        desc=description,
        total=total,
        initial=done,
        unit=unit,
        unit_scale=unit == "B",
        mininterval=0.2,
        maxinterval=1.0,
        dynamic_ncols=True,
        file=sys.stderr,
    )
