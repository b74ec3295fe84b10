"""The table of accuracies that a terminal shows."""

from collections.abc import Mapping, Sequence

from dfkd.results import Row, Summary, summarise

WIDTH = 80
"""Columns of a table."""
CELL = 9
"""Letters of a domain's head line at the most, where there is room."""
NARROW = 6
"""Letters of a domain's head line at the least; no cell is wider, but for millions of images."""


def table(rows: Sequence[Row]) -> str:
    """Accuracies in percent as a fixed-width text of at most 80 columns, without a final newline.

    One line for each model and method, one column for each domain, and the mean over domains with
    its standard deviation over seeds if there are several. What does not fit continues below.
    """
    summaries = summarise(rows)
    images = {row["domain"]: row["images"] for row in rows}
    names = sorted(images)
    labels = ["accuracy, %", *(f"{line['model']} {line['method']}" for line in summaries), "images"]
    left = min(max(map(len, labels)), WIDTH // 2)
    means = _means(summaries, sum(images.values()))
    space = WIDTH - left - len(means[0])
    size = max(1, space // (NARROW + 1))
    parts = []
    for start in range(0, len(names), size):
        block = {name: images[name] for name in names[start : start + size]}
        last = start + size >= len(names)
        parts.append(_block(labels, _columns(block, summaries, space), means if last else [], left))
    return "\n\n".join(parts)


def _means(summaries: Sequence[Summary], images: int) -> list[str]:
    figures = ["mean", *(f"{100 * line['mean']:.1f}" for line in summaries), str(images)]
    stds = (line["std"] for line in summaries)
    spreads = ["", *("" if std is None else f" ±{100 * std:.1f}" for std in stds), ""]
    width, more = max(map(len, figures)), max(map(len, spreads))
    cells = zip(figures, spreads, strict=True)
    return [f"  {figure:>{width}}{spread:{more}}" for figure, spread in cells]


Column = tuple[list[str], list[str]]
"""Head lines and body cells, all of one width."""


def _columns(
    images: Mapping[str, int], summaries: Sequence[Summary], space: int
) -> Sequence[Column]:
    """Columns of the named domains with heads as long as `space` allows."""
    columns: list[Column] = []
    for limit in range(CELL, NARROW - 1, -1):
        columns = [_column(name, images[name], summaries, limit) for name in images]
        if sum(len(head[0]) + 1 for head, _ in columns) <= space:
            break
    return columns


def _column(name: str, images: int, summaries: Sequence[Summary], limit: int) -> Column:
    words = name.replace("_", " ").replace("-", " ").split() or [name]
    head = [_short(word, limit) for word in words]
    body = [
        f"{100 * line['domains'][name]['mean']:.1f}" if name in line["domains"] else "-"
        for line in summaries
    ]
    body.append(str(images))
    width = max(map(len, head + body))
    return [word.rjust(width) for word in head], [cell.rjust(width) for cell in body]


def _short(word: str, limit: int) -> str:
    return word if len(word) <= limit else word[: limit - 1] + "."


def _block(
    labels: Sequence[str], columns: Sequence[Column], means: Sequence[str], left: int
) -> str:
    height = max(len(head) for head, _ in columns)
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
