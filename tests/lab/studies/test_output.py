"""Tables in the paper's shapes, and what a chart is drawn from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfkd.lab.studies.output import SIZES, _lines, grid
from dfkd.lab.studies.results import CellScore, StudyResults, StudyRow
from dfkd.lab.studies.study import read
from tests.helpers.tiny_study import EPOCHS, METHODS, write
from tests.lab.studies.test_results import outcome


def row(names: tuple[str, ...], *accuracy: float, whole: bool = False) -> StudyRow:
    """A row with a seed for each accuracy, that of class clock; class book has a tenth of it.

    The seeds are students of one data set or, if `whole`, have one each.
    """
    cells = []
    for seed, value in enumerate(accuracy):
        scores = outcome("d", photo=value, sketch=value / 2).scores
        per_class = {"clock": value, "book": value / 10}, {"clock": value}
        made = replace(
            outcome("d", photo=value),
            version=f"{seed if whole else 0}" * 64,
            scores=tuple(
                replace(score, class_mean=score.accuracy, per_class=each)
                for score, each in zip(scores, per_class, strict=True)
            ),
        )
        cells.append(CellScore(seed, "", made))
    return StudyRow.of(names, "student", tuple(cells), "images", parameters=2_500_000)


def measured(row: StudyRow, *changes: dict[str, float]) -> StudyRow:
    """The row with further figures of its cells."""
    cells = (
        replace(cell, outcome=replace(cell.outcome, **change))
        for cell, change in zip(row.cells, changes, strict=True)
    )
    return replace(row, cells=tuple(cells))


def results(*rows: StudyRow, **changes: Any) -> StudyResults:
    found: dict[str, Any] = {
        "study": "tiny",
        "size": "full",
        "shows": ("Table 4",),
        "command": "",
        "commit": None,
        "seeds": (0, 1),
        "domains": {"photo": 4, "sketch": 2},
        "classes": ("clock", "book"),
        "notes": (),
        "rows": rows,
        "failed": {},
    }
    return StudyResults(**{**found, **changes})


def texts(cells: tuple[Any, ...]) -> list[Any]:
    """Means in percent, the rest as it is."""
    return [round(100 * cell["mean"], 6) if isinstance(cell, dict) else cell for cell in cells]


def test_classes_as_columns_make_a_line_of_each_domain(tmp_path: Path) -> None:
    paper = {"of": "Table 4", "data": "VisDA", "columns": ["Real"], "rows": {"Baseline": [65.58]}}
    study = read(write(tmp_path, columns="classes", paper=[paper]))
    rows = [row(("Baseline",), 0.5, 0.7), row(("Random_Prompt",), 0.2, 0.2)]
    found = grid(study.described, results(*rows), {"Baseline": 4.06})
    classes = ("clock", "book", "mean")
    assert found.head == ("domain", "Method", *classes, *SIZES, "Real (VisDA, paper)")
    assert [texts(line) for line in found.rows] == [
        ["photo", "Baseline", 60, 6, 60, "10.0", "4.1", 65.58],
        ["photo", "Random_Prompt", 20, 2, 20, "10.0", None, None],
        ["sketch", "Baseline", 60, None, 30, "10.0", "4.1", 65.58],
        ["sketch", "Random_Prompt", 20, None, 10, "10.0", None, None],
    ]
    assert found.names == 2


def test_one_axis_gives_a_line_for_each_domain_under_their_mean(tmp_path: Path) -> None:
    axes = [{"name": "Epochs", "values": EPOCHS}]
    study = read(write(tmp_path, kind="curve", x="Epochs", axes=axes))
    found = _lines(study.described, results(row(("1",), 0.4, 0.4), row(("2",), 0.8, 0.8)))
    assert [(line.name, [(x, round(s["mean"], 6)) for x, s in line.values]) for line in found] == [
        ("mean", [(1.0, 0.3), (2.0, 0.6)]),
        ("photo", [(1.0, 0.4), (2.0, 0.8)]),
        ("sketch", [(1.0, 0.2), (2.0, 0.4)]),
    ]


def test_with_two_axes_each_value_of_the_other_one_gives_a_line(tmp_path: Path) -> None:
    axes = [{"name": "Epochs", "values": EPOCHS}, {"name": "Method", "values": METHODS}]
    study = read(write(tmp_path, kind="curve", x="Epochs", axes=axes))
    rows = [row((epochs, "Baseline"), 0.4, 0.4) for epochs in "12"]
    found = _lines(study.described, results(*rows, row(("1", "Random_Prompt"), 0.8, 0.8)))
    assert [(line.name, len(line.values)) for line in found] == [
        ("Baseline", 2), ("Random_Prompt", 1),
    ]  # fmt: skip


def test_each_row_is_compared_with_the_row_that_is_otherwise_alike(tmp_path: Path) -> None:
    axes = [{"name": "Epochs", "values": EPOCHS}, {"name": "Method", "values": METHODS}]
    study = read(write(tmp_path, axes=axes, compare="Baseline"))
    rows = [
        replace(row(("CLIP", ""), 0.9), model="teacher"),
        row(("1", "Baseline"), 0.2, 0.4),
        row(("1", "Random_Prompt"), 0.4),  # its other seed failed
        row(("2", "Random_Prompt"), 0.9, 0.9),  # whose reference failed
    ]
    found = grid(study.described, results(*rows), {})
    assert found.head[2:] == ("photo", "sketch", "mean", "vs Baseline", *SIZES)
    teacher, baseline, random, alone = (line[-3] for line in found.rows)
    assert teacher is baseline is alone is None
    assert random == rows[2].against(rows[1], "images")
    assert random.mean == pytest.approx(0.15)  # type: ignore[union-attr]
    # A single pair has no interval.
    assert random.low is None  # type: ignore[union-attr]
    assert found.notes[3].startswith(
        "vs Baseline: the mean difference from Baseline over the seeds"
    )


def test_agreement_has_a_column_where_it_was_measured(tmp_path: Path) -> None:
    study, plain = read(write(tmp_path)), row(("Baseline",), 0.5, 0.7)
    assert "agreement" not in grid(study.described, results(plain), {}).head
    compared = measured(plain, {"agreement": 0.6}, {"agreement": 0.8})
    found = grid(study.described, results(compared), {})
    assert texts(found.rows[0])[found.head.index("agreement")] == 70


def test_accuracy_on_unseen_classes_has_a_column_and_a_note(tmp_path: Path) -> None:
    study, plain = read(write(tmp_path, unseen=["house", "tree"])), row(("Baseline",), 0.5, 0.7)
    rows = measured(plain, *2 * [{"unseen": 0.25}]), row(("Random_Prompt",), 0.5, 0.7)
    found = grid(study.described, results(*rows), {})
    column = found.head.index("unseen")
    assert [each[column] for each in found.rows] == [{"mean": 0.25, "std": 0.0}, None]
    assert any("(house, tree)" in note for note in found.notes)


@pytest.mark.parametrize(("whole", "std"), [(False, None), (True, 0.0)])
def test_students_of_one_data_set_count_once_in_what_a_judge_recognises(
    tmp_path: Path, whole: bool, std: float | None
) -> None:
    study, plain = read(write(tmp_path)), row(("Baseline",), 0.5, 0.7, whole=whole)
    assert "recognised" not in grid(study.described, results(plain), {}).head
    judged = results(measured(plain, *2 * [{"recognised": 0.0}]), judge="4" * 64)
    found = grid(study.described, judged, {})
    assert found.rows[0][found.head.index("recognised")] == {"mean": 0.0, "std": std}


def test_the_table_says_what_deviations_are_over(tmp_path: Path) -> None:
    study = read(write(tmp_path))

    def note(*rows: StudyRow) -> str:
        return grid(study.described, results(*rows), {}).notes[0].partition("over ")[2]

    baseline, random = ("Baseline",), ("Random_Prompt",)
    students, runs = row(baseline, 0.5, 0.7), row(random, 0.5, 0.7, whole=True)
    single = row(baseline, 0.5)  # the other failed, so that it tells nothing
    assert note(students).startswith("2 students of one data set. Images")
    assert note(single, runs).startswith("2 whole runs (data set and student). Images")
    assert note(single, row(random, 0.5, 0.7)).startswith("2 students of one data set. Images")
    assert not note(single)
    three = results(row(baseline, 0.5, 0.6, 0.7), seeds=(0, 1, 2, 3))
    first_note, *_ = grid(study.described, three, {}).notes
    assert "standard deviation over 3 students" in first_note  # one of four failed
    assert note(students, runs).startswith("2 seeds. Images")
