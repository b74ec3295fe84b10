"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from tqdm import tqdm

QUIET_SECONDS = 10.0
"""Seconds between two lines where nobody watches."""


class Bar(Protocol):
    """The part of tqdm that is used, and that Ray's bar, which reaches the driver, has too."""

    def update(self, n: int) -> object:
        """Advance by `n` units."""

    def close(self) -> object:
        """Leave the last state on the screen."""


class Closing:
    """What is closed at the end of a `with` block, however that ends."""

    def close(self) -> None:
        """Free what is held; says nothing of the block's error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def say(text: str) -> None:
    """Print a line of its own on stderr, above the bar if there is one on the screen."""
    tqdm.write(text, file=sys.stderr)


class ScreenBar(Closing):
    """A bar that redraws itself, on a terminal."""

    def __init__(self, description: str, total: int, unit: str, done: int = 0) -> None:
        self.inner = tqdm(
            desc=description,
            total=total,
            initial=done,
            unit=unit,
            mininterval=0.2,
            maxinterval=1.0,
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def update(self, n: int = 1) -> None:
        """See `Bar.update`."""
        self.inner.update(n)

    def note(self, text: str) -> None:
        """Show `text` behind the rate from the next line on; an empty one shows nothing."""
        self.inner.set_postfix_str(text, refresh=False)

    def say(self, text: str) -> None:
        """Print a line of its own, once, above the bar."""
        say(text)

    def close(self) -> None:
        """See `Bar.close`."""
        self.inner.close()


class LineBar(Closing):
    """A whole line on stderr every ten seconds and at the end, for logs and behind a pipe."""

    def __init__(self, description: str, total: int, unit: str, done: int = 0) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.count = self.initial = done
        self.text = ""
        self.started = self.printed = time.monotonic()

    def update(self, n: int = 1) -> None:
        """See `Bar.update`."""
        self.count += n
        if time.monotonic() - self.printed > QUIET_SECONDS:
            self.close()

    def note(self, text: str) -> None:
        """See `ScreenBar.note`."""
        self.text = text

    def say(self, text: str) -> None:
        """See `ScreenBar.say`."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """See `Bar.close`."""
        self.printed = time.monotonic()
        meter = tqdm.format_meter(
            self.count,
            self.total,
            self.printed - self.started,
            ncols=80,
            prefix=self.description,
            ascii=True,
            unit=self.unit,
            initial=self.initial,
            postfix=self.text,
        )
        print(meter, file=sys.stderr, flush=True)


def bar(description: str, total: int, unit: str, done: int = 0) -> ScreenBar | LineBar:
    """Progress on stderr with rate and ETA; `done` units count as finished before."""
    kind = ScreenBar if sys.stderr.isatty() else LineBar
    return kind(description, total, unit, done)
