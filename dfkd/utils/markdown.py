"""Texts and tables in Markdown."""

import re
from collections.abc import Iterable, Sequence

MARKUP = re.compile(r"[\\`*<>~#\[\]]|\b_|_\b")
"""What Markdown and HTML take for markup in a text; an underscore inside a word is none."""


def escape(text: str) -> str:
    """A text of strangers on one line, without markup. `table` escapes the `|`."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return MARKUP.sub(r"\\\g<0>", " ".join(shown.split()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A table, padded so that its source is readable too.

    Args:
        names: number of columns with texts; the figures behind them are aligned right.
    """
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    # A rule needs three dashes or more.
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = [
        "-" * width if number < names else "-" * (width - 1) + ":"
        for number, width in enumerate(widths)
    ]
    padded = (
        [*map(str.ljust, line[:names], widths), *map(str.rjust, line[names:], widths[names:])]
        for line in (lines[0], rule, *lines[1:])
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
