import re

from dfkd.report.charts import ModelBar, bars
from dfkd.report.svg import COLOURS

NAME = "<b>&\"'"
MODELS = [ModelBar("teacher", 0, 0.8, None), ModelBar(NAME, 4, 0.6, 0.05)]


def test_bars_are_labelled_and_coloured_by_the_page() -> None:
    svg = bars("photo", MODELS)
    assert "var(--s0)" in svg
    assert "var(--s4)" in svg
    assert not any(colour in svg for colour in COLOURS.values())
    assert ">80.0</text>" in svg
    assert "<title>teacher on photo: 80.0 %</title>" in svg
    assert "60.0 % ± 5.0</title>" in svg
    assert "<b>" not in svg
    assert "font-family" not in svg


def test_bars_of_all_domains_have_one_size_and_scale() -> None:
    def layout(title: str, teacher: float, name: str) -> tuple[list[str], list[str], list[str]]:
        models = [ModelBar("teacher", 0, teacher, None), ModelBar(name, 4, teacher / 2, None)]
        svg = bars(title, models)
        return (
            re.findall(r'viewBox="[^"]*"', svg),
            re.findall(r'<g fill="none" transform="[^"]*"', svg),
            re.findall(r'transform="([^"]*)"[^>]*>100</text>', svg),
        )

    low = layout("neon", 0.2, "mix")
    assert all(len(found) == 1 for found in low)
    assert layout("clipart", 1.0, "mix") == low
    assert layout("photo", 0.9, "text-only classifier of a long name") == low
