"""The picture of the candidates: accuracy over time and over size, as numbers for a template."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dfkd.export.choice import Answer, Candidate, Candidates, Point, amount, frontier, points

WIDTH, HEIGHT = 320, 300
"""Size of a panel in its own units, which a phone shows as pixels."""
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 10, 24
"""Margins around the axes."""
LETTER, LINE = 6.2, 13
"""Width of a letter and height of a line, in units, at the font size of the labels, 11."""
BOLD = 1.2
"""How much wider bold letters are."""
LONGEST = 28
"""Number of letters of a label; a longer name is cut."""
MARK = 6
"""Half the side of the square that a mark keeps free of labels."""
SPREAD = 5
"""Smallest ratio of the ends of the horizontal axis."""
FARTHEST = 160
"""Largest distance of a label from its mark."""
CROSSED = 10
"""How much nearer a place must be to be taken although a piece of a line crosses it."""
SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
"""Directions from a mark to its label, to the right and down, the preferred ones first."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""


@dataclass(frozen=True)
class Mark:
    """A file in the picture."""

    x: float
    y: float
    kind: Literal["tower", "student"]
    hollow: bool
    """Whether the file is int8."""
    top: float
    bottom: float
    """Ends of its interval over seeds; both are y without one."""
    title: str


@dataclass(frozen=True)
class Label:
    """A candidate's name; its line is vertically centred on y."""

    text: str
    x: float
    y: float
    leader: tuple[float, float, float, float] | None
    """Ends of a line from a mark that is not beside it."""
    chosen: bool
    """Whether the answer names it."""


@dataclass(frozen=True)
class Panel:
    """A chart of accuracy over a cost."""

    title: str
    aside: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    steps: str
    """The frontier as an SVG path."""
    links: list[tuple[float, float, float, float]]
    """A line between the two files of each candidate."""
    marks: list[Mark]
    labels: list[Label]


def panels(found: Candidates, answer: Answer) -> list[Panel]:
    """The two panels, with accuracy or agreement in percent and both costs on a log scale."""
    measure = found.measure.capitalize()
    return [
        _panel(found, answer, "ms", f"{measure} over latency", "ms on one core"),
        _panel(found, answer, "mb", f"{measure} over size", "MB"),
    ]


def _panel(
    found: Candidates, answer: Answer, cost: Literal["ms", "mb"], title: str, aside: str
) -> Panel:
    shown = points(found)
    costs = [float(getattr(each, cost)) for each in shown]
    low, high = min(costs) / 1.3, max(costs) * 1.3
    wider = max(SPREAD * low / high, 1.0) ** 0.5
    low, high = low / wider, high * wider
    worst = 100 * min(each.low for each in shown)
    best = 100 * max(each.high for each in shown)
    step = next((step for step in (1, 2, 5, 10) if best - worst <= 5 * step), 20)
    floor = min(math.floor(worst / step) * step, 100 - step)
    ceiling = max(math.ceil(best / step) * step, floor + step)

    def across(value: float) -> float:
        share = math.log(value / low) / math.log(high / low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def down(share: float) -> float:
        height = (100 * share - floor) / (ceiling - floor)
        return round(HEIGHT - BOTTOM - height * (HEIGHT - BOTTOM - TOP), 1)

    marks = [
        Mark(
            across(getattr(point, cost)),
            down(point.mean),
            point.candidate.kind,
            point.precision == "int8",
            down(point.high),
            down(point.low),
            f"{point.name}: {100 * point.mean:.1f} %, {amount(point.ms)} ms, {amount(point.mb)} MB",
        )
        for point in shown
    ]
    path, corners = "", list[tuple[float, float]]()
    for point in frontier(shown, cost):
        x, y = across(getattr(point, cost)), down(point.mean)
        path += f"H{x:g}V{y:g}" if path else f"M{x:g} {y:g}"
        corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    corners.append((WIDTH - RIGHT, corners[-1][1]))
    links = [
        (first.x, first.y, second.x, second.y)
        for first, second in zip(marks[::2], marks[1::2], strict=True)
    ]
    lines = [*itertools.pairwise(corners)]
    lines += [((x, y), (x2, y2)) for x, y, x2, y2 in links]
    lines += [((mark.x, mark.top), (mark.x, mark.bottom)) for mark in marks]
    return Panel(
        title,
        aside,
        [(across(value), amount(value).removesuffix(".0")) for value in _decades(low, high)],
        [(down(value / 100), str(value)) for value in range(floor, ceiling + 1, step)],
        f"{path}H{WIDTH - RIGHT}",
        links,
        marks,
        _labels(found.candidates, [each.point for each in answer.choices], marks, lines),
    )


def _decades(low: float, high: float) -> list[float]:
    """Round numbers between two, as many as there is room for."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,)):
        ticks = [
            f * 10.0**power for power in powers for f in factors if low <= f * 10**power <= high
        ]
        if len(ticks) <= 7:
            break
    return ticks


def _labels(
    candidates: Sequence[Candidate],
    chosen: Sequence[Point],
    marks: Sequence[Mark],
    lines: Iterable[tuple[tuple[float, float], tuple[float, float]]],
) -> list[Label]:
    """A label for each candidate, none over another or over a mark.

    Those of the answer are placed first, then from top to bottom. Each takes the free place nearest
    to one of its two marks, rather one on no line. A name without a free place is left out; the
    table has it.
    """
    strokes = [piece for start, end in lines for piece in _pieces(start, end)]
    taken = [(m.x - MARK, m.y - MARK, m.x + MARK, m.y + MARK) for m in marks]
    names = [point.candidate.name for point in chosen]
    order = sorted(
        range(len(candidates)),
        key=lambda n: (candidates[n].name not in names, min(marks[2 * n].y, marks[2 * n + 1].y)),
    )
    labels = []
    for number in order:
        name = candidates[number].name
        text = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        width = LETTER * len(text) * (BOLD if name in names else 1)
        best: tuple[float, Box, Mark, int] | None = None
        for mark, distance, (right, below) in itertools.product(
            marks[2 * number : 2 * number + 2], range(0, FARTHEST, 8), SIDES
        ):
            away = distance * (0.7 if right and below else 1)
            x = mark.x + right * (MARK + 2 + away) - width * (1 - right) / 2
            y = mark.y + below * (MARK + 1 + LINE / 2 + away)
            box = (x, y - LINE / 2, x + width, y + LINE / 2)
            inside = x > LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
            if not inside or any(_overlap(box, other) for other in taken):
                continue
            score = distance + CROSSED * sum(_overlap(box, stroke) for stroke in strokes)
            if best is None or score < best[0]:
                best = (score, box, mark, distance)
        if best is None:
            continue
        _, box, mark, distance = best
        taken.append(box)
        middle = (box[1] + box[3]) / 2
        end = (min(max(mark.x, box[0]), box[2]), min(max(mark.y, box[1]), box[3]))
        leader = (mark.x, mark.y, round(end[0], 1), round(end[1], 1)) if distance > 8 else None
        labels.append(Label(text, round(box[0], 1), round(middle, 1), leader, name in names))
    return labels


def _pieces(start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """Boxes around short pieces of a line; one box around a slanted line would be far too large."""
    (x, y), (x2, y2) = start, end
    count = math.ceil(math.dist(start, end) / LINE) or 1
    across, down = (x2 - x) / count, (y2 - y) / count
    ends = [(x + n * across, y + n * down) for n in range(count + 1)]
    return [
        (min(a, c), min(b, d), max(a, c), max(b, d)) for (a, b), (c, d) in itertools.pairwise(ends)
    ]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
