"""The charts of a page; each is small enough for a phone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from dfkd.report.readers import PromptFacts, TrainingCurve
from dfkd.report.svg import COLOURS, SERIES, draw

WIDTH = 250
"""Pixels of a plot without its axes; with them it fits a phone."""
BINS = 40
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
MAX_POINTS = 400
"""Maximum number of points of a line."""
MAX_PROMPT_LENGTH = 140
"""Maximum number of characters of a prompt in a tooltip."""
LABEL_DISTANCE = 12
"""Minimum vertical distance between two labels, in pixels."""


@dataclass(frozen=True)
class ModelBar:
    """One model's accuracy, 0-1."""

    name: str
    slot: int
    """Number of its colour."""
    mean: float
    std: float | None


def series(slot: int) -> str:
    """The placeholder colour of a series."""
    return COLOURS[f"s{slot % SERIES}"]


def _rendered(chart: alt.LayerChart | alt.FacetChart, label: str) -> Markup:
    axis: dict[str, Any] = {
        "labelColor": COLOURS["muted"],
        "titleColor": COLOURS["muted"],
        "gridColor": COLOURS["line"],
        "domainColor": COLOURS["line"],
        "tickColor": COLOURS["line"],
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "tickSize": 4,
    }
    # The page's own font may be wider than the one that measured the labels.
    room = {"left": 8, "right": 20, "top": 4, "bottom": 4}
    chart = chart.configure(background="transparent", padding=room).configure_view(stroke=None)
    return draw(chart.configure_axis(**axis), label)


def _data(rows: Sequence[dict[str, Any]]) -> alt.InlineData:
    return alt.InlineData(values=list(rows))


def bars(title: str, models: Sequence[ModelBar]) -> Markup:
    """Accuracy of each model as a labelled bar, with a line of ± one standard deviation."""
    rows = [
        {
            "name": bar.name,
            "colour": series(bar.slot),
            "value": 100 * bar.mean,
            "low": 100 * max(bar.mean - (bar.std or 0), 0),
            "high": 100 * min(bar.mean + (bar.std or 0), 1),
            "text": f"{100 * bar.mean:.1f}",
            "about": f"{bar.name} on {title}: {100 * bar.mean:.1f} %"
            + ("" if bar.std is None else f" ± {100 * bar.std:.1f}"),
        }
        for bar in models
    ]
    scale = alt.Scale(domain=[0, 100])
    axis = alt.Axis(values=[0, 25, 50, 75, 100], title=None, domain=False, ticks=False)
    names = alt.Axis(
        title=None, domain=False, ticks=False, labelPadding=6, labelColor=COLOURS["ink"],
        labelLimit=110, minExtent=74, labelFontSize=12,
    )  # fmt: skip
    base = alt.Chart(_data(rows)).encode(y=alt.Y("name:N", sort=None, axis=names))
    bar = base.mark_bar(height=13).encode(
        x=alt.X("value:Q", scale=scale, axis=axis),
        color=alt.Color("colour:N", scale=None),
        description="about:N",
    )
    layers = [bar]
    if any(model.std is not None for model in models):
        spread = base.mark_rule(strokeWidth=1.5, color=COLOURS["ink"], aria=False)
        layers.append(spread.encode(x=alt.X("low:Q", scale=scale), x2="high:Q"))
    text = base.mark_text(
        align="left", dx=5, fontSize=12, fontWeight=600, color=COLOURS["ink"], aria=False
    )
    layers.append(text.encode(x=alt.X("high:Q", scale=scale), text="text:N"))
    chart = alt.layer(*layers).properties(width=WIDTH - 40, height=22 * len(rows))
    return _rendered(chart, f"Accuracy on {title}, in percent")


def _lines(rows: Sequence[dict[str, Any]], high: float) -> alt.Chart:
    """The lines of `curves`, on an axis from 0 to `high`."""
    chart: alt.Chart = (
        alt.Chart(_data(rows))
        .mark_line(strokeWidth=1.8, clip=False)
        .encode(
            x=alt.X("x:Q", axis=alt.Axis(title="step", tickCount=4, grid=False)),
            y=alt.Y(
                "y:Q", scale=alt.Scale(domain=[0, high]),
                axis=alt.Axis(title=None, tickCount=5, domain=False, ticks=False),
            ),
            color=alt.Color("colour:N", scale=None),
            strokeDash=alt.StrokeDash(
                "dash:N", legend=None,
                scale=alt.Scale(domain=list(range(len(DASHES))), range=list(DASHES)),
            ),
            detail="line:N",
            description="line:N",
        )
    )  # fmt: skip
    return chart


def curves(kind: str, curve_slots: Sequence[tuple[TrainingCurve, int]]) -> Markup:
    """Loss or agreement of each student over training steps; each line is labelled at its end.

    Args:
        kind: `loss` or `agreement`.
        found: curves with their colour slots.
    """
    values = [
        (curve, slot, curve.loss if kind == "loss" else curve.agreement)
        for curve, slot in curve_slots
    ]
    height = 170
    top = max((max(v) for _, _, v in values if v), default=1.0)
    high = 1.0 if kind == "agreement" else top * 1.05 or 1.0
    rows, ends = [], []
    dashes = _dashes([curve for curve, _ in curve_slots])
    for (curve, slot, value), dash in zip(values, dashes, strict=True):
        step = -(-len(value) // MAX_POINTS) or 1
        for x, y in list(zip(curve.steps, value, strict=True))[::step]:
            rows.append({"x": x, "y": y, "line": curve.name, "colour": series(slot), "dash": dash})
        if value:
            ends.append((curve.name, slot, curve.steps[-1], value[-1]))
    label_positions = spread_out([height * (1 - y / high) for *_, y in ends], LABEL_DISTANCE)
    labels = [
        {"x": x, "y": high * (1 - place / height), "text": name, "colour": series(slot)}
        for (name, slot, x, _), place in zip(ends, label_positions, strict=True)
    ]
    line = _lines(rows, high)
    text = (
        alt.Chart(_data(labels))
        .mark_text(align="left", dx=5, fontSize=11, aria=False)
        .encode(x="x:Q", y="y:Q", text="text:N", color=alt.Color("colour:N", scale=None))
    )
    chart = alt.layer(line, text).properties(width=WIDTH, height=height)
    return _rendered(chart, f"{kind.capitalize()} of each student over training steps")


def _dashes(training_curves: Sequence[TrainingCurve]) -> list[int]:
    """Index of each curve's dash pattern, by the rank of its seed within its method."""
    seeds: dict[str, list[int]] = {}
    for curve in training_curves:
        seeds.setdefault(curve.method, []).append(curve.seed)
    return [
        sorted(seeds[curve.method]).index(curve.seed) % len(DASHES) for curve in training_curves
    ]


def spread_out(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved down by as little as needed to keep them `gap` apart, in the given order."""
    moved = list(positions)
    # Work from the top down, so that each position is moved at most once.
    last = -np.inf
    for i in sorted(range(len(moved)), key=lambda i: moved[i]):
        last = moved[i] = max(moved[i], last + gap)
    return moved


def _shares(
    groups: Sequence[tuple[str, int, npt.NDArray[Any]]], low: float, high: float
) -> tuple[list[dict[str, Any]], list[tuple[str, int, float, float]]]:
    """Rows of a histogram's bars, and name, slot, edge and share of each group's highest bar."""
    edges = np.linspace(low, high, BINS + 1)
    rows, tops = [], []
    for order, (name, slot, values) in enumerate(groups):
        counts, _ = np.histogram(np.clip(values, low, high), edges)
        shares = counts / max(counts.sum(), 1)
        peak = int(shares.argmax())
        tops.append((name, slot, float(edges[peak]), float(shares[peak])))
        rows += [
            {
                "x": float(edge), "x2": float(after), "y": float(share), "group": name,
                "colour": series(slot), "order": order,
                "about": f"{name}: {100 * share:.1f} % from {edge:.2f} to {after:.2f}",
            }
            for edge, after, share in zip(edges[:-1], edges[1:], shares, strict=True)
            if share
        ]  # fmt: skip
    return rows, tops


def histogram(
    title: str, groups: Sequence[tuple[str, int, npt.NDArray[Any]]], low: float, high: float
) -> Markup:
    """The share of values in each of 40 bins, with one semi-transparent outline for each group.

    Args:
        title: of the x axis.
        groups: name, colour slot and values of each group.
        low: start of the x axis.
        high: end of the x axis.
    """
    rows, tops = _shares(groups, low, high)
    axis = alt.Axis(title="share", format="%", tickCount=4, domain=False, ticks=False)
    bar = (
        alt.Chart(_data(rows))
        .mark_bar(opacity=0.55, binSpacing=0)
        .encode(
            x=alt.X(
                "x:Q", scale=alt.Scale(domain=[low, high]),
                axis=alt.Axis(title=title, grid=False, tickCount=5),
            ),
            x2="x2:Q",
            y=alt.Y("y:Q", axis=axis, stack=False),
            y2=alt.Y2Datum(0),
            color=alt.Color("colour:N", scale=None),
            description="about:N",
        )
    )  # fmt: skip
    height = 120
    high_share = max((share for *_, share in tops), default=1.0) or 1.0
    label_positions = spread_out(
        [height * (1 - share / high_share) - 8 for *_, share in tops], LABEL_DISTANCE
    )
    middle = (low + high) / 2
    labels = [
        {
            "x": x, "y": high_share * (1 - place / height), "text": name, "colour": series(slot),
            "right": bool(x > middle),
        }
        for (name, slot, x, _), place in zip(tops, label_positions, strict=True)
    ]  # fmt: skip
    layers = [bar, *_side_labels(labels)]
    chart = alt.layer(*layers).properties(width=WIDTH, height=height)
    return _rendered(chart, f"Histogram of {title}")


def _side_labels(labels: Sequence[dict[str, Any]]) -> list[alt.Chart]:
    """Texts left or right of their positions, coloured like their series, with a halo."""
    layers = []
    for right in (False, True):
        side_labels = [label for label in labels if label["right"] is right]
        if not side_labels:
            continue
        text = alt.Chart(_data(side_labels)).encode(x="x:Q", y="y:Q", text="text:N")
        style: dict[str, Any] = {
            "align": "right" if right else "left", "dx": -6 if right else 8, "fontSize": 11,
            "aria": False,
        }  # fmt: skip
        paper = COLOURS["paper"]
        layers += [
            text.mark_text(stroke=paper, strokeWidth=4, color=paper, **style),
            text.mark_text(**style).encode(color=alt.Color("colour:N", scale=None)),
        ]
    return layers


def prompt_map(prompts: PromptFacts, classes: Sequence[str]) -> Markup:
    """Prompt embeddings on their first two principal components, with each class's name at its
    mean.
    """
    height = 230
    points = prompts.points
    rows = [
        {
            "x": float(x), "y": float(y), "colour": series(1 + label % (SERIES - 1)),
            "shape": SHAPES[label // (SERIES - 1) % len(SHAPES)],
            "about": f"{classes[label]}: {text[:MAX_PROMPT_LENGTH]}",
        }
        for (x, y), label, text in zip(points, prompts.labels.tolist(), prompts.texts, strict=True)
    ]  # fmt: skip
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.maximum(high - low, 1e-6) * 0.12
    (x0, y0), (x1, y1) = (low - room).tolist(), (high + room).tolist()
    hidden = alt.Axis(title=None, labels=False, ticks=False, domain=False, tickCount=4)
    x = alt.X("x:Q", scale=alt.Scale(domain=[x0, x1], nice=False), axis=hidden)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[y0, y1], nice=False), axis=hidden)
    dots = (
        alt.Chart(_data(rows))
        .mark_point(filled=True, size=22, opacity=0.75)
        .encode(x=x, y=y, color=alt.Color("colour:N", scale=None),
                shape=alt.Shape("shape:N", scale=None), description="about:N")
    )  # fmt: skip
    labels = _class_labels(prompts, classes, (x0, y0), (x1, y1), height)
    halo: dict[str, Any] = {"fontSize": 11, "fontWeight": 600, "aria": False}
    text = alt.Chart(_data(labels)).encode(x="x:Q", y="y:Q", text="text:N")
    chart = alt.layer(
        dots,
        text.mark_text(stroke=COLOURS["paper"], strokeWidth=3, color=COLOURS["paper"], **halo),
        text.mark_text(color=COLOURS["ink"], **halo),
    ).properties(width=WIDTH + 40, height=height)
    return _rendered(chart, f"Map of the prompts of method {prompts.method}")


def _class_labels(
    prompts: PromptFacts,
    classes: Sequence[str],
    low: tuple[float, float],
    high: tuple[float, float],
    height: int,
) -> list[dict[str, Any]]:
    """Class names at the class means, moved down where two would overlap."""
    present = sorted(set(prompts.labels.tolist()))
    means = [prompts.points[prompts.labels == label].mean(axis=0) for label in present]
    width = WIDTH + 40
    xs = [width * (m[0] - low[0]) / (high[0] - low[0]) for m in means]
    ys = [height * (1 - (m[1] - low[1]) / (high[1] - low[1])) for m in means]
    placed: list[tuple[float, float, float]] = []
    rows: list[dict[str, Any]] = []
    # From top to bottom: a label only has to avoid those above it. Widths are estimated at 6.6
    # pixels for each character.
    for i in sorted(range(len(present)), key=lambda i: ys[i]):
        name = classes[present[i]]
        half = 3.3 * len(name)
        x = min(max(xs[i], half), width - half)
        y = ys[i]
        while any(abs(x - a) < half + b and abs(y - c) < LABEL_DISTANCE for a, b, c in placed):
            y += 1
        placed.append((x, half, y))
        rows.append(
            {
                "text": name,
                "x": low[0] + x / width * (high[0] - low[0]),
                "y": low[1] + (1 - y / height) * (high[1] - low[1]),
            }
        )
    return rows
