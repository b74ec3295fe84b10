"""Few-shot accuracies as a terminal's table of 80 columns, and as Markdown with every domain."""

import re
from collections.abc import Mapping, Sequence

from dfkd.fewshot_results import CURVES, Band, Curve, Results, gains
from dfkd.report.table import WIDTH
from dfkd.results import Spread

CELL = 10
"""Letters of a column at the most: `78.9 ±12.3`."""
LABELS = ("images a class", "gain", "trained on", "tested on")

Bands = Mapping[tuple[Curve, int], Band]
Grid = list[list[str]]
"""A line of shots, one for each curve, one of gains and two of images; labels first."""


def table(results: Results) -> str:
    """Means over domains in percent, with their standard deviation over seeds.

    One column for each k; below them what training adds to the student, and the images of all
    domains that one seed's trainings learned from and were tested on. At most 80 columns of text:
    what does not fit continues below.
    """
    bands, names = _means(results), results.data.domains
    size = (WIDTH - max(map(len, LABELS))) // (CELL + 1)
    ticks = _ticks(results)
    blocks = [
        _fixed(_grid(results, bands, ticks[first : first + size], names))
        for first in range(0, len(ticks), size)
    ]
    return "\n\n".join([f"few-shot accuracy, %, {_of(names)}\n{blocks[0]}", *blocks[1:]])


def markdown(results: Results) -> str:
    """The same as Markdown, then each domain, and what there is to know about the figures."""
    ticks, names = _ticks(results), results.data.domains
    parts = [
        f"# Few-shot accuracy, %, of {_plain(results.architecture)}",
        "Mean and standard deviation over seeds; 0 images is before any training. Figures of one "
        "column share their test images, those of two columns do not. The gain is what training "
        "adds to the student, with the standard deviation of that difference.",
        "\n".join(f"- {c}: {_plain(results.curves[c])}" for c in CURVES if c in results.curves),
        f"## {_of(names).capitalize()}",
        _piped(_grid(results, _means(results), ticks, names)),
    ]
    for name in names if len(names) > 1 else ():
        bands = {(point.curve, point.shots): point.domains[name] for point in results.summary}
        parts += [f"## {_plain(name)}", _piped(_grid(results, bands, ticks, [name]))]
    remarks = [*results.data.notes, *(f"unreadable: {line}" for line in results.data.unreadable)]
    if remarks:
        parts += ["## Notes", "\n".join(f"- {_plain(remark)}" for remark in remarks)]
    return "\n\n".join(parts) + "\n"


def _ticks(results: Results) -> list[int]:
    return sorted({point.shots for point in results.summary})


def _means(results: Results) -> Bands:
    return {(point.curve, point.shots): Band(point.mean, point.std) for point in results.summary}


def _of(names: Sequence[str]) -> str:
    return "one domain" if len(names) == 1 else f"mean of {len(names)} domains"


def _grid(results: Results, bands: Bands, ticks: Sequence[int], names: Sequence[str]) -> Grid:
    rows = [row for row in results.rows if row.domain in names]
    curves = [curve for curve, shots in bands if shots == max(ticks)]
    grid = [[curve, *(_figure(bands.get((curve, shots))) for shots in ticks)] for curve in curves]
    if added := gains(rows):
        grid.append([LABELS[1], *(_gain(added.get(shots)) for shots in ticks)])
    for label, trained in ((LABELS[2], True), (LABELS[3], False)):
        images = {
            (row.shots, row.domain): sum(row.trained if trained else row.tested)
            for row in rows
            if row.seed == rows[0].seed
        }
        counts = (sum(images[shots, name] for name in names) for shots in ticks)
        grid.append([label, *map(str, counts)])
    return [[LABELS[0], *map(str, ticks)], *grid]


def _figure(band: Band | None) -> str:
    if band is None:
        return "-"
    return f"{100 * band.mean:.1f}" + ("" if band.std is None else f" ±{100 * band.std:.1f}")


def _gain(found: Spread | None) -> str:
    if found is None:
        return "-"
    spread = "" if found["std"] is None else f" ±{100 * found['std']:.1f}"
    return f"{100 * found['mean']:+.1f}{spread}"


def _fixed(grid: Grid) -> str:
    left = max(map(len, LABELS))
    lines = [
        (label.ljust(left) + "".join(f" {cell:>{CELL}}" for cell in cells)).rstrip()
        for label, *cells in grid
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _piped(grid: Grid) -> str:
    rule = "|---" + "|---:" * (len(grid[0]) - 1) + "|"
    head, *lines = (f"| {' | '.join(line)} |" for line in grid)
    return "\n".join([head, rule, *lines])


def _plain(text: str) -> str:
    """`text` on one line, with what Markdown or HTML would read escaped."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", shown)
