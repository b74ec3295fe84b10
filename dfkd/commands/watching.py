"""Print a status, once or again and again."""

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from dfkd.commands import command_line
from dfkd.errors import InfrastructureError
from dfkd.operations.status.schema import RunStatus
from dfkd.operations.status.text import line, text
from dfkd.storage.base import MissingObject

CLEAR = "\x1b[2J\x1b[H"
"""Clears a terminal."""

Look = Callable[[], RunStatus]


def show(look: Look, as_json: bool) -> None:
    """Print the status once, as a table or as JSON."""
    status = look()
    shown = json.dumps(status.as_dict(), indent=1) if as_json else text(status)
    command_line.show(f"{shown}\n")


def watch(look: Look, as_json: bool, seconds: float) -> None:
    """Print the status every so many seconds, until there is nothing to do or Ctrl-C is pressed.

    A terminal is redrawn. Elsewhere, and with `as_json`, a line is printed for each change.
    """
    # A first look that fails is an error. Later ones are tried again, because a watch of hours
    # should outlive a store that is away for a while.
    status, shown = look(), ""
    try:
        while True:
            if sys.stdout.isatty() and not as_json:
                print(f"{CLEAR}{text(status)}", flush=True)
            elif (now := line(status)) != shown:
                shown = now
                printed = json.dumps(status.as_dict()) if as_json else f"{_clock()} {now}"
                print(printed, flush=True)
            if status.next is None:
                return
            time.sleep(seconds)
            try:
                status = look()
            # An object is missing if dfkd clean removes its version during the look.
            except (InfrastructureError, MissingObject, OSError) as error:
                print(f"{_clock()} {error}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(flush=True)  # ends the line with the ^C of a terminal


def _clock() -> str:
    """The time as `2026-11-27T18:50:12+00:00`."""
    return datetime.now(UTC).isoformat(timespec="seconds")
