"""A table of figures, and its rendering as Markdown. The same table gives the same bytes."""

from dataclasses import dataclass

from dfkd.evaluation.results import Spread
from dfkd.lab.studies.paired import Difference
from dfkd.utils.markdown import escape, table

Entry = str | Spread | Difference | float | None
"""Text; our accuracies or their difference (0-1); a number as the paper prints it; or nothing."""

NONE = "-"


@dataclass(frozen=True)
class Grid:
    """Headings and rows of the same width; the first `names` columns contain text."""

    title: str
    head: tuple[str, ...]
    names: int
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]
    """Sentences below the table."""


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
    """A heading, the table, and the notes as a list."""
    rows = [[escape(format_entry(cell)) for cell in row] for row in grid.rows]
    text = [f"# {escape(grid.title)}", "", table([*map(escape, grid.head)], rows, grid.names)]
    if grid.notes:
        text += ["", *(f"- {escape(note)}" for note in grid.notes)]
    return "\n".join(text) + "\n"
