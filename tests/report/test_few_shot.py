import io
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import pytest
from PIL import Image

from dfkd.config.distillation import Start
from dfkd.evaluation.few_shot_results import (
    Curve,
    FewShotData,
    FewShotResults,
    curves,
    row,
    sort_rows,
    summarise,
)
from dfkd.report.few_shot import STYLES, markdown, picture, table

CURVES: dict[Curve, str] = {
    "untouched": "before any training",
    "student": "distilled, mix images, seed 0",
    "library": "weights IMAGENET1K_V1",
    "scratch": "random weights",
}


def results(
    domains: Sequence[str] = ("ink", "oil"),
    shots: Sequence[int] = (1, 16),
    seeds: Sequence[int] = (0, 1),
    starts: Sequence[Start] = ("student", "library", "scratch"),
    notes: Sequence[str] = (),
) -> FewShotResults:
    """Accuracy is 10 % a curve, and one per cent more for each domain, shot and seed."""
    shown = curves(starts)
    rows = [
        row(
            curve, domain, k, seed, (k, k), (1900, 100), (20 * (10 + 10 * number + d + k + seed), 0)
        )
        for number, curve in enumerate(shown)
        for d, domain in enumerate(domains)
        for k in ((0, *shots) if curve == "untouched" else shots)
        for seed in seeds
    ]
    return FewShotResults(
        architecture="resnet18",
        classes=("cat", "dog"),
        data=FewShotData("bundled", tuple(domains), tuple(notes), ()),
        curves={curve: CURVES[curve] for curve in shown},
        rows=tuple(sort_rows(rows)),
        summary=tuple(summarise(rows)),
    )


def test_the_table_has_a_line_for_each_curve_and_a_column_for_each_k() -> None:
    assert table(results()) == "\n".join(
        [
            "few-shot accuracy, %, mean of 2 domains",
            "images a class         0          1         16",
            "----------------------------------------------",
            "untouched      11.0 ±0.7  12.0 ±0.7  27.0 ±0.7",
            "student                -  22.0 ±0.7  37.0 ±0.7",
            "library                -  32.0 ±0.7  47.0 ±0.7",
            "scratch                -  42.0 ±0.7  57.0 ±0.7",
            "gain                   - +10.0 ±0.0 +10.0 ±0.0",
            "trained on             0          4         64",
            "tested on           4000       4000       4000",
        ]
    )


@pytest.mark.parametrize("seeds", [(0,), tuple(range(5))])
@pytest.mark.parametrize("domains", [1, 9])
def test_no_line_is_wider_than_a_terminal_and_every_k_is_there(
    domains: int, seeds: tuple[int, ...]
) -> None:
    shots = tuple(range(1, 20))
    names = [f"a_long_domain_name_{number}" for number in range(domains)]
    text = table(results(names, shots, seeds))
    assert max(map(len, text.splitlines())) <= 80
    assert all(block.count("student") == 1 for block in text.split("\n\n"))
    heads = [line.split()[3:] for line in text.splitlines() if line.startswith("images a class")]
    assert [int(k) for head in heads for k in head] == [0, *shots]


def test_the_paper_s_shots_fit_one_block() -> None:
    text = table(results(shots=(1, 2, 4, 8, 16)))
    assert "\n\n" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_markdown_has_each_domain_and_the_notes() -> None:
    text = markdown(results(notes=["domain ink: too few"]))
    assert "| library | - | 31.5 ±0.7 | 46.5 ±0.7 |\n" in text.partition("## ink")[2]
    assert "| library | - | 32.5 ±0.7 | 47.5 ±0.7 |\n" in text.partition("## oil")[2]
    assert "- student: distilled, mix images, seed 0\n- library: weights IMAGENET1K\\_V1\n" in text
    assert text.endswith("## Notes\n\n- domain ink: too few\n")


def test_a_single_domain_is_shown_once() -> None:
    text = markdown(results(["ink"], seeds=[3]))
    assert text.count("| student | - | 24.0 | 39.0 |") == 1
    assert text.count("| gain | - | +10.0 | +10.0 |") == 1
    assert "## One domain" in text


def test_names_of_domains_are_escaped_in_markdown() -> None:
    text = markdown(results(["a|b\n# <i>*c*", "oil"]))
    assert "## a\\|b \\# \\<i\\>\\*c\\*\n" in text


SPACE = "{http://www.w3.org/2000/svg}"


def svg(found: FewShotResults) -> str:
    return picture(found).svg.decode()


def texts(drawn: str) -> list[str]:
    root = ET.fromstring(drawn)
    return ["".join(element.itertext()) for element in root.iter(f"{SPACE}text")]


def marks(drawn: str, kind: str) -> list[ET.Element]:
    """The drawn marks of a kind: their groups say so."""
    groups = ET.fromstring(drawn).iter(f"{SPACE}g")
    found = [
        g
        for g in groups
        if f"mark-{kind}" in g.get("class", "").split() and "role-mark" in g.get("class", "")
    ]
    return [path for group in found for path in group.iter(f"{SPACE}path")]


def test_each_domain_has_a_plot_beside_the_mean_with_a_line_and_a_band_of_each_curve() -> None:
    drawn = svg(results())
    for words in CURVES.items():
        assert f"{words[0]}: {words[1]}" in texts(drawn)
    assert {"ink", "oil", "0", "1", "16", "100"} <= set(texts(drawn))
    assert "mean of 2 domains; bands are one standard deviation over 2 draws" in texts(drawn)
    assert len(marks(drawn, "line")) == len(marks(drawn, "area")) == 3 * 4
    lines = {path.get("stroke") for path in marks(drawn, "line")}
    assert lines == {colour for colour, _, _ in STYLES.values()}
    dashes = {path.get("stroke-dasharray") for path in marks(drawn, "line")}
    assert len(dashes) == 4


def heights(path: ET.Element) -> set[float]:
    """The y of every corner of a path."""
    corners = path.get("d", "").strip("MZ").split("L")
    return {float(corner.split(",")[1]) for corner in corners}


def test_a_band_is_one_standard_deviation_to_each_side_of_its_line() -> None:
    """Two seeds 1 % apart give 2^-0.5 % to each side; 100 % are 260 pixels."""
    drawn = svg(results(["ink"], starts=["library"]))
    (line,), (band,) = marks(drawn, "line"), marks(drawn, "area")
    middle = max(heights(line))
    assert middle == pytest.approx(260 * (1 - 0.115), abs=0.01)
    near = sorted(y for y in heights(band) if abs(y - middle) < 10)
    assert near == pytest.approx(
        [middle - 260 * 0.5**0.5 / 100, middle + 260 * 0.5**0.5 / 100], abs=0.01
    )


def test_one_seed_has_no_visible_band() -> None:
    drawn = svg(results(["ink"], seeds=[0]))
    assert "one domain" in texts(drawn)
    assert not any("deviation" in text for text in texts(drawn))
    for band in marks(drawn, "area"):
        assert len(heights(band)) <= 3


def test_the_png_is_the_same_picture_and_sharp_and_both_are_the_same_each_time() -> None:
    drawn = picture(results())
    assert drawn == picture(results())
    width = float(ET.fromstring(drawn.svg).get("width", "0"))
    with Image.open(io.BytesIO(drawn.png)) as image:
        assert image.format == "PNG"
        assert image.width == pytest.approx(2 * width, abs=2)


def test_names_of_domains_are_escaped_in_the_picture() -> None:
    name = "<script>\"'&\\ datum.value"
    drawn = svg(results([name, "oil"]))
    assert name in texts(drawn)
    assert "<script" not in drawn
