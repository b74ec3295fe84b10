"""Tables of accuracies for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from dfkd.evaluation.footprint import megabytes
from dfkd.evaluation.results import Spread, Summary, images_of

WIDTH = 80
"""Maximum number of characters in a line."""
MAX_HEAD_WIDTH = 9
"""Maximum width of a column heading in characters, if there is room."""
MIN_HEAD_WIDTH = 6
"""Smallest limit on the width of a heading. Cells are no wider, except for millions of images."""
SIZES = "MB: parameters in float32; ms: one image on one core of this machine."
"""Explanation of the last two columns."""
HEADS = {"images": "accuracy, %", "classes": "class mean, %"}
"""What the figures are, by `average`."""


def table(results: Mapping[str, Any], ms: Mapping[str, float]) -> str:
    """Accuracies in percent as text with lines of at most 80 characters, without a final newline.

    There is one line for each model and method, and one column for each domain. The last columns
    are the mean over domains with its standard deviation over seeds (if there are several), the
    model's size, and the time for one image. Further columns continue below.

    Args:
        results: the content of `results.json`.
        ms: milliseconds by model, for those that were measured.
    """
    summaries, images = results["summary"], images_of(results)
    labels = [HEADS[results["average"]], *map(_label, summaries), "images"]
    columns = {
        name: [*(_percent(line["domains"].get(name)) for line in summaries), str(count)]
        for name, count in images.items()
    }
    means = _means(summaries, sum(images.values()))
    models = [line["model"] for line in summaries]
    sizes = [f"{megabytes(results['parameters'][model]):.1f}" for model in models]
    times = [f"{ms[model]:.1f}" if model in ms else "-" for model in models]
    last = zip(means, ["MB", *sizes, ""], ["ms", *times, ""], strict=True)
    return _grid(labels, columns, align(list(last), left=0))


def align(lines: Sequence[Sequence[str]], left: int = 1, gap: str = " ") -> list[str]:
    """Lines of cells as texts with aligned columns, of which the first `left` are aligned left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        [*map(str.ljust, line[:left], widths), *map(str.rjust, line[left:], widths[left:])]
        for line in lines
    )
    return [gap.join(cells).rstrip() for cells in padded]


def _label(line: Summary) -> str:
    """The label of a row."""
    return f"{line['model']} {line['method']}"


def _percent(accuracy: Spread | None) -> str:
    """The mean in percent; a dash if nothing was scored."""
    return "-" if accuracy is None else f"{100 * accuracy['mean']:.1f}"


def _means(lines: Sequence[Summary], images: int) -> list[str]:
    """The column of means with their deviations, below its heading and above the image count."""
    figures = ["mean", *(f"{100 * line['mean']:.1f}" for line in lines), str(images)]
    stds = (line["std"] for line in lines)
    spreads = ["", *("" if std is None else f" ±{100 * std:.1f}" for std in stds), ""]
    width, more = max(map(len, figures)), max(map(len, spreads))
    cells = zip(figures, spreads, strict=True)
    return [f"  {figure:>{width}}{spread:{more}}" for figure, spread in cells]


def _grid(labels: Sequence[str], cells: Mapping[str, list[str]], means: Sequence[str]) -> str:
    """The columns after their labels, in blocks as needed; the last block ends with `means`."""
    left = min(max(map(len, labels)), WIDTH // 2)
    space = WIDTH - left - len(means[0])
    names = list(cells)
    fits = sum(len(head[0]) + 1 for head, _ in _columns(cells, space)) <= space
    # Blocks of equal size: if not everything fits into one, assume the narrowest columns.
    size = len(names) if fits else max(1, space // (MIN_HEAD_WIDTH + 1))
    parts = []
    for start in range(0, len(names), size):
        block = {name: cells[name] for name in names[start : start + size]}
        last = start + size >= len(names)
        parts.append(_block(labels, _columns(block, space), means if last else [], left))
    return "\n\n".join(parts)


Column = tuple[list[str], list[str]]
"""Heading lines and body cells, all of the same width."""


def _columns(cells: Mapping[str, list[str]], space: int) -> Sequence[Column]:
    """The columns, with headings shortened only as far as `space` requires."""
    columns: list[Column] = []
    for limit in range(MAX_HEAD_WIDTH, MIN_HEAD_WIDTH - 1, -1):
        columns = [_column(name, body, limit) for name, body in cells.items()]
        if sum(len(head[0]) + 1 for head, _ in columns) <= space:
            break
    return columns


def _column(name: str, body: Sequence[str], limit: int) -> Column:
    """A column whose heading has one line for each word, of at most `limit` characters."""
    words = name.replace("_", " ").replace("-", " ").split() or [name]
    head = [_short(word, limit) for word in words]
    width = max(map(len, [*head, *body]))
    return [word.rjust(width) for word in head], [cell.rjust(width) for cell in body]


def _short(word: str, limit: int) -> str:
    """The word, or its beginning and a full stop."""
    return word if len(word) <= limit else word[: limit - 1] + "."


def _block(
    labels: Sequence[str], columns: Sequence[Column], means: Sequence[str], left: int
) -> str:
    """The lines of a block: headings aligned at the bottom, a rule, and the body.

    `left` is the width of the labels; `means` is empty except in the last block.
    """
    height = max(len(head) for head, _ in columns)
    # Blank lines on top, so that headings of one line stand right above the rule too.
    first = [" " * left] * (height - 1) + [_short(label, left).ljust(left) for label in labels]
    grid = [first]
    for head, body in columns:
        grid.append([" " * len(head[0])] * (height - len(head)) + head + body)
    lines = [" ".join(cells) for cells in zip(*grid, strict=True)]
    if means:
        lines = [
            line + mean for line, mean in zip(lines, [""] * (height - 1) + list(means), strict=True)
        ]
    lines = [line.rstrip() for line in lines]
    rule = "-" * max(map(len, lines))
    return "\n".join([*lines[:height], rule, *lines[height:]])
