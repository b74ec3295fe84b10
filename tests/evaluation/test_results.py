import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dfkd.errors import CorruptionError
from dfkd.evaluation.data import Domains, Item
from dfkd.evaluation.results import (
    ResultRow,
    images_of,
    results,
    row,
    sort_rows,
    summarise,
    validate_results,
    write_results,
)
from dfkd.storage.local import open_storage

CLASSES = ("cat", "dög")
SIZES = {"teacher": 1000, "student": 250}


def scored(method: str, seed: int, domain: str, right: int, wrong: int) -> ResultRow:
    model = "teacher" if method == "zero-shot" else "student"
    counts = np.array([[right, wrong], [0, 0]], dtype=np.int64)
    return row(model, method, seed, domain, CLASSES, counts)


ROWS = [
    scored("contrastive", 1, "ink", 9, 1),
    scored("contrastive", 1, "flat", 7, 3),
    scored("contrastive", 0, "ink", 8, 2),
    scored("contrastive", 0, "flat", 4, 6),
    scored("vanilla", 0, "ink", 5, 5),
    scored("vanilla", 0, "flat", 3, 7),
    scored("zero-shot", 0, "ink", 10, 0),
    scored("zero-shot", 0, "flat", 9, 1),
]


DATA = Domains("bundled", CLASSES, (Item("flat", 0, "a"), Item("ink", 0, "b")), ("a note",))


def content() -> dict[str, Any]:
    return results(DATA, ROWS, ["z: torn", "b: torn"], SIZES, [])


def lopsided(domain: str, seed: int) -> ResultRow:
    """9 of 9 cats right, and of one dog none; of seed 1 five cats."""
    counts = np.array([[9 - 4 * seed, 4 * seed], [1, 0]], dtype=np.int64)
    return row("student", "mix", seed, domain, CLASSES, counts)


def test_a_summary_uses_class_means_if_they_are_asked_for() -> None:
    rows = [lopsided(domain, seed) for domain in ("ink", "flat") for seed in (0, 1)]
    (over_images,), (over_classes,) = summarise(rows), summarise(rows, "classes")
    assert over_images["mean"] == pytest.approx((9 / 10 + 5 / 10) / 2)
    assert over_classes["mean"] == pytest.approx((9 / 9 + 5 / 9) / 4)
    assert over_classes["domains"]["ink"]["mean"] == pytest.approx(over_classes["mean"])
    assert over_classes["std"] == pytest.approx(2 / 9 / 2**0.5)


def test_the_average_and_the_order_of_domains_are_part_of_the_results() -> None:
    rows = [lopsided(domain, 0) for domain in ("flat", "ink")]
    data = Domains("there", CLASSES, (Item("ink", 0, "b"), Item("flat", 0, "a")), ())
    found = results(data, rows, [], SIZES, [], "classes")
    validate_results(found)
    assert found["average"] == "classes"
    assert found["summary"][0]["mean"] == 0.5
    assert images_of(found) == {"ink": 10, "flat": 10}
    assert list(images_of(found)) == found["data"]["domains"] == ["ink", "flat"]
    with pytest.raises(CorruptionError, match="summary: must follow"):
        validate_results(found | {"average": "images"})


def test_order_is_teacher_then_methods_seeds_and_domains() -> None:
    models = [("zero-shot", 0), ("vanilla", 0), ("contrastive", 0), ("contrastive", 1)]
    keys = [(line["method"], line["seed"], line["domain"]) for line in sort_rows(ROWS)]
    assert keys == [(*model, domain) for model in models for domain in ("flat", "ink")]


def test_summary_means_over_domains_and_then_over_seeds() -> None:
    teacher, vanilla, contrastive = summarise(ROWS)
    assert (teacher["mean"], teacher["std"]) == (pytest.approx(0.95), None)
    assert (vanilla["mean"], vanilla["std"]) == (pytest.approx(0.4), None)
    assert contrastive["seeds"] == [0, 1]
    assert contrastive["mean"] == pytest.approx((0.6 + 0.8) / 2)
    assert contrastive["std"] == pytest.approx(0.2 / 2**0.5)
    assert contrastive["domains"]["ink"]["mean"] == pytest.approx(0.85)
    assert contrastive["domains"]["flat"]["std"] == pytest.approx(0.3 / 2**0.5)


@given(arrays(np.int64, (3, 3), elements=st.integers(0, 50)).filter(lambda counts: counts.any()))
def test_accuracy_is_the_weighted_mean_of_the_classes(counts: Any) -> None:
    line = row("student", "mix", 0, "ink", ("a", "b", "c"), counts)
    totals = dict(zip("abc", counts.sum(axis=1).tolist(), strict=True))
    right = sum(totals[name] * value for name, value in line["per_class"].items())
    assert line["accuracy"] == pytest.approx(right / line["images"])
    assert set(line["per_class"]) == {name for name, total in totals.items() if total}
    assert 0 <= line["class_mean"] <= 1


def test_the_file_holds_what_was_scored_in_whatever_order(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    place = write_results(storage, content())
    assert Path(place) == tmp_path / "results.json"
    text = (tmp_path / "results.json").read_text()
    assert "[9, 1]" in text  # counts stand on one line
    read = json.loads(text)
    assert read["schema"] == 1
    assert read["data"]["unreadable"] == ["b: torn", "z: torn"]
    validate_results(read)
    assert read["rows"] == sort_rows(ROWS)
    write_results(storage, results(DATA, ROWS[::-1], ["b: torn", "z: torn"], SIZES, []))
    assert (tmp_path / "results.json").read_text() == text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema: must be 1"),
        (("classes",), "cat", "classes: must be a valid list"),
        (("rows",), [], "rows: List must have at least 1 item"),
        (("rows", 0, "model"), "judge", r"rows\.0\.model"),
        (("rows", 0, "seed"), True, r"rows\.0\.seed: must be a valid integer"),
        (("rows", 0, "images"), 11, r"rows\.0\.images: must follow"),
        (("rows", 0, "accuracy"), 0.91, r"rows\.0\.accuracy: must follow"),
        (("rows", 0, "per_class"), {"cat": 0.9, "dög": 0.0}, r"rows\.0\.per_class"),
        (("rows", 0, "confusion"), [[9, 1]], r"confusion: must be 2 x 2"),
        (("rows", 0, "confusion"), [[9, -1], [0, 0]], r"confusion\.0\.1: must be greater"),
        (("rows", 0, "confusion"), [[0, 0], [0, 0]], r"confusion: must count"),
        (("rows", 0, "confusion"), [[1 << 63, 0], [0, 0]], r"confusion\.0\.0: must be less than"),
        (("rows", 0, "extra"), 1, r"rows\.0\.extra: Extra inputs"),
        (("rows", 1, "domain"), "flat", "must occur once"),
        (("average",), "median", "average: must be 'images' or 'classes'"),
        (("average",), ["classes"], "average: must be 'images' or 'classes'"),
        (("data",), [], "data: must be a valid dictionary"),
        (("data", "domains"), [["ink"], "flat"], r"data\.domains\.0: must be a valid string"),
        (("data", "notes"), "one", r"data\.notes: must be a valid list"),
        (("summary", 0, "mean"), 0.5, "summary: must follow"),
    ],
)
def test_results_that_do_not_fit_are_refused(
    path: tuple[Any, ...], value: object, message: str
) -> None:
    wrong = copy.deepcopy(content())
    place: Any = wrong
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    validate_results(content())
    with pytest.raises(CorruptionError, match=message):
        validate_results(wrong)
