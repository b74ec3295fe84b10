from collections.abc import Sequence

from dfkd.lab.few_shot.results import (
    Curve,
    FewShotData,
    FewShotResults,
    curves,
    markdown,
    picture,
    row,
    sort_rows,
    summarise,
)
from dfkd.lab.few_shot.settings import Start

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
    text = markdown(results()).partition("## Mean of 2 domains\n\n")[2].partition("\n\n##")[0]
    head, _, *lines = text.replace(" ", "").splitlines()
    assert [line.strip("|").split("|") for line in (head, *lines)] == [
        ["imagesaclass", "0", "1", "16"],
        ["untouched", "11.0±0.7", "12.0±0.7", "27.0±0.7"],
        ["student", "-", "22.0±0.7", "37.0±0.7"],
        ["library", "-", "32.0±0.7", "47.0±0.7"],
        ["scratch", "-", "42.0±0.7", "57.0±0.7"],
        ["gain", "-", "+10.0±0.0", "+10.0±0.0"],
        ["trainedon", "0", "4", "64"],
        ["testedon", "4000", "4000", "4000"],
    ]


def test_markdown_has_each_domain_and_the_notes() -> None:
    text = markdown(results(notes=["domain ink: too few"]))
    for domain, cells in (("ink", "31.5 ±0.7 |  46.5 ±0.7"), ("oil", "32.5 ±0.7 |  47.5 ±0.7")):
        line = f"| library        |         - |  {cells} |\n"
        assert line in text.partition(f"## {domain}")[2]
    assert "- student: distilled, mix images, seed 0\n- library: weights IMAGENET1K_V1\n" in text
    assert "if several students are named below, takes another one." in text  # as `student_seed`
    assert text.endswith("## Notes\n\n- domain ink: too few\n")


def test_a_single_domain_is_shown_once() -> None:
    text = markdown(results(["ink"], seeds=[3]))
    assert text.count("| student        |    - |  24.0 |  39.0 |") == 1
    assert text.count("| gain           |    - | +10.0 | +10.0 |") == 1
    assert "## ink\n" in text


def test_names_of_domains_are_escaped_in_markdown() -> None:
    text = markdown(results(["a|b\n# <i>*c*", "oil"]))
    assert "## a|b \\# \\<i\\>\\*c\\*\n" in text


def test_the_picture_has_a_line_for_each_curve() -> None:
    drawn = picture(results()).svg.decode()
    for text in (f"{curve}: {words}" for curve, words in CURVES.items()):
        assert f">{text}</text>" in drawn
    assert all(f">{shots}</text>" in drawn for shots in (0, 1, 16))
    assert ">resnet18: mean of 2 domains</text>" in drawn
    assert drawn.count('aria-roledescription="line mark"') == 4
