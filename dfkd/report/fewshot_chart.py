"""The curves of Fig. 5: accuracy over shots, the mean over domains and then each domain.

A picture of its own, on white: the page's custom properties do not reach a file. Colours are Okabe
and Ito's, which the colour-blind can tell apart; shape and dash say the same once more.
"""

import json
from collections.abc import Mapping
from typing import Any

import altair as alt
import vl_convert

from dfkd.fewshot_results import Band, Curve, Results

STYLES: dict[Curve, tuple[str, str, list[int]]] = {
    "untouched": ("#56B4E9", "diamond", [1, 2]),
    "student": ("#0072B2", "circle", [1, 0]),
    "library": ("#E69F00", "square", [6, 3]),
    "scratch": ("#7A7A7A", "triangle-up", [2, 2]),
}
"""Colour, shape and dash of each curve; blue and orange as in the paper."""
WIDTH, HEIGHT = 504, 260
"""Pixels of the mean's plot without its axes."""
SMALL, COLUMNS, GAP = 132, 3, 37
"""Pixels of a domain's plot, plots in a row, and pixels between them."""
SCALE = 2.0
"""Pixels of the PNG for each of the SVG."""
AXIS = "training images of each class (0: before any training)"
INK, LINE = "#333333", "#DDDDDD"


def svg(results: Results) -> str:
    """The picture as SVG; the same results are the same text."""
    return str(vl_convert.vegalite_to_svg(_chart(results).to_dict(), allowed_base_urls=[]))


def png(results: Results) -> bytes:
    """The picture as PNG; the same results are the same bytes."""
    chart = _chart(results).to_dict()
    return bytes(vl_convert.vegalite_to_png(chart, scale=SCALE, allowed_base_urls=[]))


def _chart(results: Results) -> alt.VConcatChart:
    domains, seeds = results.data.domains, len(results.summary[0].seeds)
    heads = [
        f"{results.architecture}: accuracy on the rest of a domain, %",
        ("one domain" if len(domains) == 1 else f"mean of {len(domains)} domains")
        + (f"; bands are one standard deviation over {seeds} seeds" if seeds > 1 else ""),
    ]
    means = {(point.curve, point.shots): Band(point.mean, point.std) for point in results.summary}
    plots: list[Any] = [_panel(results, means, heads, (WIDTH, HEIGHT))]
    for first in range(0, len(domains), COLUMNS) if len(domains) > 1 else ():
        row = [_of_domain(results, name) for name in domains[first : first + COLUMNS]]
        plots.append(alt.hconcat(*row, spacing=GAP))
    axis: dict[str, Any] = {
        "labelColor": INK, "titleColor": INK, "gridColor": LINE, "domainColor": LINE,
        "tickColor": LINE, "titleFontWeight": "normal",
    }  # fmt: skip
    chart: alt.VConcatChart = (
        alt.vconcat(*plots, spacing=18)
        .configure(background="white", padding=12)
        .configure_view(stroke=None)
        .configure_axis(**axis)
        .configure_legend(labelColor=INK, labelFontSize=12, symbolSize=90, symbolStrokeWidth=2)
    )
    return chart


def _of_domain(results: Results, name: str) -> alt.LayerChart | alt.FacetChart:
    bands = {(point.curve, point.shots): point.domains[name] for point in results.summary}
    return _panel(results, bands, [name], (SMALL, SMALL))


def _panel(
    results: Results,
    bands: Mapping[tuple[Curve, int], Band],
    heads: list[str],
    size: tuple[int, int],
) -> alt.LayerChart | alt.FacetChart:
    """One plot; the large one has the legend and names the axis."""
    large = size[0] > SMALL
    ticks = [str(shots) for shots in sorted({point.shots for point in results.summary})]
    shots = alt.X(
        "shots:O", sort=ticks, scale=alt.Scale(type="point", padding=0.3),
        axis=alt.Axis(title=AXIS if large else None, labelAngle=0, grid=False),
    )  # fmt: skip
    base = alt.Chart(alt.InlineData(values=_rows(bands))).encode(x=shots)
    colour, shape, dash = _styles(results, large)
    scale = alt.Scale(domain=[0, 100])
    value = alt.Y("mean:Q", scale=scale, axis=alt.Axis(title=None, tickCount=5, ticks=False))
    layers = [
        base.mark_area(opacity=0.22).encode(
            y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour
        ),
        base.mark_line(strokeWidth=1.8).encode(y=value, color=colour, strokeDash=dash),
        base.mark_point(filled=True, opacity=1, size=60 if large else 24).encode(
            y=value, color=colour, shape=shape
        ),
    ]
    title = alt.TitleParams(
        heads[0], anchor="start", fontSize=13 if large else 11, offset=8, color=INK,
        fontWeight="bold" if large else "normal", subtitleColor=INK,
        subtitle=heads[1:] or alt.Undefined,
    )  # fmt: skip
    return alt.layer(*layers).properties(width=size[0], height=size[1], title=title)


def _rows(bands: Mapping[tuple[Curve, int], Band]) -> list[dict[str, Any]]:
    return [
        {
            "curve": curve,
            "shots": str(shots),
            "mean": 100 * band.mean,
            "low": 100 * max(band.mean - (band.std or 0), 0),
            "high": 100 * min(band.mean + (band.std or 0), 1),
        }
        for (curve, shots), band in bands.items()
    ]


def _styles(results: Results, large: bool) -> tuple[alt.Color, alt.Shape, alt.StrokeDash]:
    """Colour, shape and dash by curve, in one legend that says what each curve is."""
    names = [curve for curve in STYLES if curve in results.curves]
    words = {curve: f"{curve}: {results.curves[curve]}" for curve in names}
    label = " : ".join(f"datum.value == {json.dumps(s)} ? {json.dumps(words[s])}" for s in names)
    shown = alt.Legend(
        title=None, orient="top", direction="vertical", symbolOpacity=1, labelLimit=WIDTH,
        labelExpr=f"{label} : ''",
    )  # fmt: skip
    legend = shown if large else None
    colours, shapes, dashes = zip(*(STYLES[curve] for curve in names), strict=True)
    return (
        alt.Color("curve:N", scale=alt.Scale(domain=names, range=list(colours)), legend=legend),
        alt.Shape("curve:N", scale=alt.Scale(domain=names, range=list(shapes)), legend=legend),
        alt.StrokeDash("curve:N", scale=alt.Scale(domain=names, range=list(dashes)), legend=None),
    )
