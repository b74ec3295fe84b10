"""A table of figures, and its rendering as Markdown. The same table gives the same bytes."""

import re
from dataclasses import dataclass

from dfkd.evaluation.results import Spread
from dfkd.utils.paired import Difference

Entry = str | Spread | Difference | float | None
"""Text; our accuracies or their difference (0-1); a number as the paper prints it; or nothing."""

NONE = "-"

MARKDOWN = re.compile(r"[\\`*<>|~\[\]]|\b_|_\b")
"""Characters that Markdown would read as markup; an underscore inside a word is not markup."""


@dataclass(frozen=True)
class Grid:
    """Headings and rows of the same width; the first `names` columns contain text."""

    title: str
    head: tuple[str, ...]
    names: int
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]
    """Sentences below the table."""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.head) for row in self.rows):
            raise ValueError("every row of a grid is as wide as its head")


def format_entry(cell: Entry) -> str:
    """A cell as text: our figures in percent with one decimal and the deviation, the paper's with
    two.
    """
    if cell is None:
        return NONE
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float):
        return f"{cell:.2f}"
    if isinstance(cell, Difference):
        return _signed(cell)
    deviates = "" if cell["std"] is None else f" ± {100 * cell['std']:.1f}"
    return f"{100 * cell['mean']:.1f}{deviates}"


def _signed(cell: Difference) -> str:
    """The difference in percentage points with its sign and interval: `+1.5 (-0.3 to +3.3)`."""
    if cell.low is None or cell.high is None:
        return f"{100 * cell.mean:+.1f}"
    return f"{100 * cell.mean:+.1f} ({100 * cell.low:+.1f} to {100 * cell.high:+.1f})"


def markdown(grid: Grid) -> str:
    """A heading, the table padded so that the source is readable, and the notes as a list."""
    lines = [[_markdown(name) for name in grid.head]]
    lines += [[_markdown(format_entry(cell)) for cell in row] for row in grid.rows]
    # A rule of a Markdown table needs three dashes or more.
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(grid.head))]
    padded = [
        [
            cell.ljust(width) if number < grid.names else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    rule = [
        "-" * width if number < grid.names else "-" * (width - 1) + ":"
        for number, width in enumerate(widths)
    ]
    text = [f"# {_markdown(grid.title)}", ""]
    text += [f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:])]
    if grid.notes:
        text += ["", *(f"- {_markdown(note)}" for note in grid.notes)]
    return "\n".join(text) + "\n"


def _markdown(text: str) -> str:
    return MARKDOWN.sub(lambda match: f"\\{match[0]}", _line(text))


def _line(text: str) -> str:
    return " ".join(text.split())
