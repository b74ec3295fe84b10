import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from dfkd.lab.few_shot.results import (
    KEY,
    Curve,
    FewShotData,
    FewShotResults,
    FewShotRow,
    gains,
    row,
    sort_rows,
    summarise,
    write,
)
from dfkd.storage.local import open_storage

CLASSES = ("cat", "dög")


def scored(curve: Curve, domain: str, shots: int, seed: int, right: tuple[int, int]) -> FewShotRow:
    return row(curve, domain, shots, seed, (shots, shots), (10, 30), right)


ROWS = [
    scored("scratch", "ink", 2, 0, (1, 3)),
    scored("scratch", "ink", 2, 1, (2, 6)),
    scored("scratch", "oil", 2, 0, (5, 3)),
    scored("scratch", "oil", 2, 1, (10, 30)),
    *(
        scored(curve, domain, shots, seed, (8, 24 + seed * shots * (curve == "student")))
        for domain in ("oil", "ink")
        for curve, shots in (("student", 2), ("untouched", 2), ("untouched", 0))
        for seed in (1, 0)
    ),
]


def content(rows: list[FewShotRow] = ROWS) -> FewShotResults:
    found = sort_rows(rows)
    return FewShotResults(
        architecture="resnet18",
        classes=CLASSES,
        data=FewShotData("bundled", ("ink", "oil"), ("a note",), ("b.png: torn",)),
        curves={"untouched": "before", "student": "distilled", "scratch": "random weights"},
        rows=tuple(found),
        summary=tuple(summarise(found)),
    )


def test_a_row_follows_from_its_counts() -> None:
    found = scored("student", "ink", 2, 0, (8, 6))
    assert found.accuracy == 14 / 40
    assert found.class_mean == pytest.approx((0.8 + 0.2) / 2)
    alone = row("student", "ink", 2, 0, (0, 2), (0, 4), (0, 1))
    assert alone.class_mean == alone.accuracy == 0.25


def test_the_summary_is_a_mean_over_domains_and_then_over_seeds() -> None:
    untouched, _, _, scratch = found = summarise(ROWS)
    shown = [(point.curve, point.shots) for point in found]
    assert shown == [("untouched", 0), ("untouched", 2), ("student", 2), ("scratch", 2)]
    assert scratch.seeds == (0, 1)
    first, second = (4 / 40 + 8 / 40) / 2, (8 / 40 + 1) / 2
    assert scratch.mean == pytest.approx((first + second) / 2)
    assert scratch.std == pytest.approx((second - first) / 2**0.5)
    assert scratch.domains["ink"]["mean"] == pytest.approx(6 / 40)
    assert (untouched.mean, untouched.std) == (pytest.approx(0.8), pytest.approx(0))
    (single,) = summarise(ROWS[:1])
    assert single.std is None


def test_summary_and_gain_are_over_classes_if_the_manifest_says_so() -> None:
    *_, scratch = summarise(ROWS, "classes")
    first, second = ((1 / 10 + 3 / 30) / 2 + (5 / 10 + 3 / 30) / 2) / 2, (0.2 + 1) / 2
    assert scratch.mean == pytest.approx((first + second) / 2)
    gain = gains(ROWS, "classes")[2]["mean"]
    assert gain == pytest.approx(2 / 30 / 2 / 2)  # seed 1 adds 2 of 30 images of one class of two


def test_a_gain_is_the_mean_difference_of_each_seed_on_its_own_test_images() -> None:
    """Seed 0 adds nothing, seed 1 adds 2 of 40 in both domains."""
    assert gains(ROWS) == {2: {"mean": pytest.approx(0.025), "std": pytest.approx(0.05 / 2**0.5)}}
    assert gains([found for found in ROWS if found.curve == "scratch"]) == {}


def test_a_gain_is_over_the_student_that_was_tested_on_as_many_shots() -> None:
    rows = [
        scored("untouched", "ink", 0, 0, (10, 30)),
        scored("untouched", "ink", 2, 0, (8, 24)),
        scored("student", "ink", 2, 0, (9, 24)),
    ]
    assert gains(rows)[2]["mean"] == pytest.approx(1 / 40)


def test_all_is_written_and_the_order_of_work_changes_no_byte(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    place = write(storage, content())
    assert place == str(tmp_path / KEY)
    written = storage.get(KEY)
    assert TypeAdapter(FewShotResults).validate_json(written) == content()
    write(storage, content(ROWS[::-1]))
    assert storage.get(KEY) == written
    assert json.loads(written)["schema"] == 1
    assert "dög" in written.decode()
