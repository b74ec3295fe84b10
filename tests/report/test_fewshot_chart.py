import io
import xml.etree.ElementTree as ET

import pytest
from PIL import Image
from shots import CURVES, results

from dfkd.report.fewshot_chart import STYLES, png, svg

SPACE = "{http://www.w3.org/2000/svg}"


def texts(picture: str) -> list[str]:
    root = ET.fromstring(picture)
    return ["".join(element.itertext()) for element in root.iter(f"{SPACE}text")]


def marks(picture: str, kind: str) -> list[ET.Element]:
    """The drawn marks of a kind: their groups say so."""
    groups = ET.fromstring(picture).iter(f"{SPACE}g")
    found = [
        g
        for g in groups
        if f"mark-{kind}" in g.get("class", "").split() and "role-mark" in g.get("class", "")
    ]
    return [path for group in found for path in group.iter(f"{SPACE}path")]


def test_each_domain_has_a_plot_beside_the_mean_with_a_line_and_a_band_of_each_curve() -> None:
    picture = svg(results())
    for words in CURVES.items():
        assert f"{words[0]}: {words[1]}" in texts(picture)
    assert {"ink", "oil", "0", "1", "16", "100"} <= set(texts(picture))
    assert "mean of 2 domains; bands are one standard deviation over 2 seeds" in texts(picture)
    assert len(marks(picture, "line")) == len(marks(picture, "area")) == 3 * 4
    lines = {path.get("stroke") for path in marks(picture, "line")}
    assert lines == {colour for colour, _, _ in STYLES.values()}
    dashes = {path.get("stroke-dasharray") for path in marks(picture, "line")}
    assert len(dashes) == 4


def heights(path: ET.Element) -> set[float]:
    """The y of every corner of a path."""
    corners = path.get("d", "").strip("MZ").split("L")
    return {float(corner.split(",")[1]) for corner in corners}


def test_a_band_is_one_standard_deviation_to_each_side_of_its_line() -> None:
    """Of two seeds one per cent apart it is 2^-0.5 % high to each side, on 260 pixels for 100 %."""
    picture = svg(results(["ink"], starts=["library"]))
    (line,), (band,) = marks(picture, "line"), marks(picture, "area")
    middle = max(heights(line))
    assert middle == pytest.approx(260 * (1 - 0.115), abs=0.01)
    near = sorted(y for y in heights(band) if abs(y - middle) < 10)
    assert near == pytest.approx(
        [middle - 260 * 0.5**0.5 / 100, middle + 260 * 0.5**0.5 / 100], abs=0.01
    )


def test_one_seed_has_no_band_to_speak_of() -> None:
    picture = svg(results(["ink"], seeds=[0]))
    assert "one domain" in texts(picture)
    assert not any("deviation" in text for text in texts(picture))
    for band in marks(picture, "area"):
        assert len(heights(band)) <= 3


def test_the_same_results_are_the_same_bytes() -> None:
    assert svg(results()) == svg(results())
    assert png(results()) == png(results())


def test_the_png_is_the_same_picture_and_sharp() -> None:
    width = float(ET.fromstring(svg(results())).get("width", "0"))
    with Image.open(io.BytesIO(png(results()))) as image:
        assert image.format == "PNG"
        assert image.width == pytest.approx(2 * width, abs=2)


def test_names_from_a_disk_are_text() -> None:
    name = "<script>\"'&\\ datum.value"
    picture = svg(results([name, "oil"]))
    assert name in texts(picture)
    assert "<script" not in picture
