"""A chart as inline SVG: drawn by Vega-Lite while the page is written, coloured by its CSS.

Charts are drawn in colours that stand for custom properties; here they become `var(--...)`, so
that one drawing serves the light theme, the dark one, and paper.
"""

import re

# The parser reads what vl-convert wrote, which expands no entities.
import xml.etree.ElementTree as ET

import altair as alt
import vl_convert
from markupsafe import Markup

SERIES = 8
"""Colours of series in the page's CSS: --s0 is the teacher's."""

NAMES = ("ink", "muted", "line", "paper", *(f"s{number}" for number in range(SERIES)))
COLOURS = {name: f"#0{number:x}0{number:x}0{number:x}" for number, name in enumerate(NAMES)}
"""The colour that stands for each custom property; nothing else is drawn in one of them."""

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
LONG = re.compile(r"-?\d+\.\d{3,}")


def draw(chart: alt.TopLevelMixin, label: str) -> Markup:
    """The chart as an `<svg>` element that scales with its container.

    Marks that have a `description` show it as a tooltip. The same chart gives the same bytes.

    Args:
        label: what the chart shows, for those who do not see it.
    """
    text = vl_convert.vegalite_to_svg(chart.to_dict(), allowed_base_urls=[])
    root = ET.fromstring(text)  # noqa: S314
    _clean(root)
    width = root.attrib["viewBox"].split()[2]
    root.attrib.update({"role": "img", "aria-label": label, "style": f"--w:{width}"})
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - the serialiser escapes


def files(chart: alt.TopLevelMixin) -> tuple[bytes, bytes]:
    """The chart as the bytes of an SVG and of a PNG of twice its size, in its own colours."""
    svg = vl_convert.vegalite_to_svg(chart.to_dict(), allowed_base_urls=[])
    return svg.encode(), vl_convert.svg_to_png(svg, scale=2)


def _clean(element: ET.Element) -> None:
    """Leave what can be seen, without the names and styles that a page has itself."""
    element.tag = element.tag.removeprefix(SPACE)
    for name, value in list(element.attrib.items()):
        if name in DROPPED:
            del element.attrib[name]
        elif value in VARIABLES:
            element.attrib[name] = VARIABLES[value]
        elif name in ("d", "transform", "x2", "y2", "x", "y"):
            element.attrib[name] = LONG.sub(lambda found: f"{float(found[0]):.2f}", value)
    described = element.attrib.pop("aria-label", "")
    marks = element.attrib.pop("role", "") == "graphics-symbol" and len(element) == 0
    for child in list(element):
        _clean(child)
        if _invisible(child):
            element.remove(child)
    if described and marks:
        ET.SubElement(element, "title").text = described


def _invisible(element: ET.Element) -> bool:
    found = element.attrib
    if found.get("display") == "none" or found.get("opacity") == "0":
        return True
    if element.tag == "g":
        return len(element) == 0
    if element.tag in ("path", "rect") and found.get("aria-hidden") == "true":
        return not {"fill", "stroke"} & found.keys()
    return False
