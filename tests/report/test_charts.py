from xml.sax.saxutils import escape

import numpy as np
import pytest

from dfkd.report.charts import ModelBar, bars, curves, histogram, prompt_map, spread_out
from dfkd.report.facts import Facts
from dfkd.report.readers import PromptFacts, TrainingCurve
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


def test_a_line_ends_at_its_label_and_seeds_differ_in_dashes() -> None:
    found = [
        (TrainingCurve("mix", seed, f"mix {seed}", (1, 2, 3), (3.0, 2.0, 1.0), (0.1, 0.2, 0.3)), 2)
        for seed in (0, 1)
    ]
    svg = curves("loss", found)
    assert ">mix 0</text>" in svg
    assert ">mix 1</text>" in svg
    assert 'stroke-dasharray="6,3"' in svg


def test_labels_are_kept_apart() -> None:
    assert spread_out([5.0, 4.0, 30.0], 12) == [16.0, 4.0, 30.0]
    assert spread_out([], 12) == []


def test_a_histogram_shows_shares_of_every_value() -> None:
    values = np.array([0.12] * 3 + [0.92])
    svg = histogram("cosine", [("within", 1, values), ("across", 0, -values)], -1.0, 1.0)
    assert "within: 75.0 % from 0.10 to 0.15" in svg
    assert "across: 25.0 % from -0.95 to -0.90" in svg
    assert ">within</text>" in svg
    assert ">across</text>" in svg


@pytest.mark.parametrize("values", [np.array([]), np.array([0.5])])
def test_a_histogram_of_almost_nothing_is_drawn(values: np.ndarray) -> None:
    assert histogram("loss", [("mix", 2, values)], 0.0, 1.0).startswith("<svg")


def test_a_map_of_many_classes_stays_a_map_and_leaves_names_out() -> None:
    count = 150
    points = np.random.default_rng(0).normal(size=(count, 2))
    texts, nothing = ["a prompt"] * count, np.zeros(1)
    prompts = PromptFacts(
        "random", count, np.arange(count), texts, points, nothing, nothing, 1.0, None
    )
    names = [f"name of class {number:03}" for number in range(count)]
    svg = prompt_map(prompts, names)
    *_, width, height = map(float, svg.split('viewBox="')[1].split('"')[0].split())
    assert width < 320
    assert height < 260
    assert 10 < sum(f">{name}</text>" in svg for name in names) < count
    assert all(f"{name}: a prompt</title>" in svg for name in names)


def test_a_map_names_every_class_once(facts: Facts) -> None:
    prompts = facts.method_images[0].prompts
    assert prompts is not None
    svg = prompt_map(prompts, facts.classes)
    for name in facts.classes:
        assert svg.count(f'stroke="var(--paper)" stroke-width="3">{escape(name)}</text>') == 1
    assert svg.count("<title>") == len(prompts.texts)
    assert "<script>" not in svg
