"""Texts and tables in Markdown, and tables for a terminal."""

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
    lines = [head, ["---"] * len(head), *rows]  # a rule needs three dashes or more
    padded = _padded([[cell.replace("|", "\\|") for cell in line] for line in lines], names)
    rule = (cell.replace(" ", "-") for cell in padded[1])
    padded[1] = [cell if number < names else f"{cell[:-1]}:" for number, cell in enumerate(rule)]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def align(lines: Sequence[Sequence[str]], left: int = 1, gap: str = " ") -> list[str]:
    """Lines of cells as texts with aligned columns, of which the first `left` are aligned left."""
    return [gap.join(cells).rstrip() for cells in _padded(lines, left)]


def _padded(lines: Sequence[Sequence[str]], left: int) -> list[list[str]]:
    """The cells, as wide as their columns; those of the first `left` columns are aligned left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        [*map(str.ljust, line[:left], widths), *map(str.rjust, line[left:], widths[left:])]
        for line in lines
    ]
