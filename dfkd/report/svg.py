"""Charts drawn by Vega-Lite: as inline SVG, which the page's CSS colours, or as files.

Charts of a page are drawn in placeholder colours, which are replaced by `var(--...)` here. So one
drawing serves the light theme, the dark theme and paper.
"""

# The input is written by vl-convert and contains no entities, so this parser is safe.
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup

SERIES = 8
"""Number of series colours in the page's CSS; --s0 is the teacher's."""

NAMES = ("ink", "muted", "line", *(f"s{number}" for number in range(SERIES)))
COLOURS = {name: f"#0{number:x}0{number:x}0{number:x}" for number, name in enumerate(NAMES)}
"""Placeholder colour of each CSS variable; nothing else is drawn in these colours."""

VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
SPACE = "{http://www.w3.org/2000/svg}"
DROPPED = {
    "aria-roledescription",
    "class",
    "font-family",
    "height",
    "pointer-events",
    "stroke-miterlimit",
    "version",
    "width",
}
"""Attributes that the page does not need, or that would override its styles."""


def draw(chart: alt.TopLevelMixin, label: str) -> Markup:
    """The chart as an `<svg>` element that scales with its container.

    Marks with a `description` show it as a tooltip. The same chart gives the same bytes.

    Args:
        label: description of the chart for screen readers.
    """
    text = vl_convert.vegalite_to_svg(chart.to_dict(), allowed_base_urls=[])
    root = ET.fromstring(text)  # noqa: S314
    _clean(root)
    width = root.attrib["viewBox"].split()[2]
    root.attrib.update({"role": "img", "aria-label": label, "style": f"--w:{width}"})
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - the serialiser escapes


@dataclass(frozen=True)
class RenderedChart:
    """A chart as the bytes of an SVG and a PNG file; the same chart gives the same bytes."""

    svg: bytes
    png: bytes
    """Has twice the resolution of the SVG."""


def files(chart: alt.TopLevelMixin) -> RenderedChart:
    """The chart as files, in its own colours."""
    svg = vl_convert.vegalite_to_svg(chart.to_dict(), allowed_base_urls=[])
    return RenderedChart(svg.encode(), vl_convert.svg_to_png(svg, scale=2))


def data_chart(rows: Sequence[dict[str, Any]]) -> alt.Chart:
    """A chart of these rows, without marks."""
    return alt.Chart(alt.InlineData(values=list(rows)))


def axis_style(text: str, line: str, **more: object) -> dict[str, Any]:
    """The style of all axes of a chart: the colours of texts and lines, and `more` settings."""
    return {
        "labelColor": text, "titleColor": text, "titleFontWeight": "normal",
        "gridColor": line, "domainColor": line, "tickColor": line, **more,
    }  # fmt: skip


def band(mean: float, std: float | None) -> tuple[float, float]:
    """One standard deviation below and above an accuracy 0-1, in percent; None counts as 0."""
    # A band that leaves 0 to 100 % would stretch the axis.
    return 100 * max(mean - (std or 0), 0), 100 * min(mean + (std or 0), 1)


def _clean(element: ET.Element) -> None:
    """Remove names and styles that would collide with the page's own, and set its colours."""
    element.tag = element.tag.removeprefix(SPACE)
    for name, value in list(element.attrib.items()):
        if name in DROPPED:
            del element.attrib[name]
        elif value in VARIABLES:
            element.attrib[name] = VARIABLES[value]
    description = element.attrib.pop("aria-label", "")
    is_mark = element.attrib.pop("role", "") == "graphics-symbol" and len(element) == 0
    for child in element:
        _clean(child)
    # Browsers show a child `title` as a tooltip.
    if description and is_mark:
        ET.SubElement(element, "title").text = description
