"""Means and deviations over seeds, by hand."""

import json
from pathlib import Path

import pytest

from dfkd.errors import CorruptionError
from dfkd.evaluation.data import Domains, Item
from dfkd.lab.studies.output import chart, grid
from dfkd.lab.studies.results import (
    CellResult,
    CellScore,
    Score,
    StudyCells,
    StudyRow,
    collect_results,
    scored_images,
)
from dfkd.lab.studies.study import read
from tests.helpers.tiny_study import write


def outcome(date: str, **accuracy: float) -> CellResult:
    scores = tuple(
        Score(
            domain=name, images=4, accuracy=value, class_mean=value / 2, per_class={"clock": value}
        )
        for name, value in accuracy.items()
    )
    return CellResult(
        model="m",
        version="1" * 64,
        data="2" * 64,
        scores=scores,
        notes=("a note",),
        date=date,
        machine={"cpus": 2},
        environment={"torch": date},
    )


def cells(*values: tuple[float, float]) -> tuple[CellScore, ...]:
    return tuple(
        CellScore(seed, "cells/m", outcome("d", photo=photo, sketch=sketch))
        for seed, (photo, sketch) in enumerate(values)
    )


def test_a_row_has_the_mean_over_seeds_of_the_mean_over_domains() -> None:
    row = StudyRow.of(("Mix", ""), "student", cells((0.5, 0.1), (0.7, 0.5)), "images")
    assert row.label == "Mix"
    assert row.domains["photo"]["mean"] == pytest.approx(0.6)
    assert row.domains["photo"]["std"] == pytest.approx(0.02**0.5)
    assert row.mean["mean"] == pytest.approx(0.45)  # of 0.3 and 0.6
    assert row.mean["std"] == pytest.approx(0.045**0.5)
    assert row.class_mean("sketch")["mean"] == pytest.approx(0.15)
    assert (
        StudyRow.of(("x",), "teacher", cells((0.5, 0.1)), "images").domains["photo"]["std"] is None
    )


def test_a_class_is_averaged_over_the_domains_that_have_it() -> None:
    row = StudyRow.of(("x",), "student", cells((0.5, 0.1), (0.7, 0.5)), "images")
    found = row.of_class_everywhere("clock")
    assert found["mean"] == pytest.approx(0.45)
    assert found["std"] == pytest.approx(0.045**0.5)
    assert row.of_class("photo", "book") is row.of_class_everywhere("book") is None
    clock = row.of_class("sketch", "clock")
    assert clock["mean"] == pytest.approx(0.3)


def test_a_cell_of_other_domains_is_refused(tmp_path: Path) -> None:
    """The root of a study may come from a stranger."""
    study = read(write(tmp_path))
    row = next(iter(study.rows))
    found = StudyCells(None, {row: (CellScore(0, "cells/a", outcome("d", sketch=0.5)),)}, {}, {})
    with pytest.raises(CorruptionError, match="cells/a: has scores of other domains than"):
        collect_results(study, found, {"photo": 4}, "", None, (), {})


def test_rows_stand_in_the_order_of_the_study_with_the_teacher_first(tmp_path: Path) -> None:
    study = read(write(tmp_path, teacher="CLIP"))
    late, early = outcome("2026-11-26", photo=0.5), outcome("2026-11-25", photo=0.25)
    students = {
        "Random_Prompt": (CellScore(0, "cells/a", early), CellScore(1, "cells/b", late)),
        "Baseline": (),
    }
    teacher = CellScore(0, "cells/t", outcome("2026-11-26", photo=1.0))
    found = StudyCells(teacher, students, {}, {"x": "why"})
    sizes = {"CLIP": 3, "Random_Prompt": 2}
    command = "dfkd reproduce x"
    results = collect_results(study, found, {"photo": 4}, command, "abc", (), sizes)
    assert [row.names for row in results.rows] == [("CLIP",), ("Random_Prompt",)]
    assert [row.model for row in results.rows] == ["teacher", "student"]
    assert [row.parameters for row in results.rows] == [3, 2]
    assert [cell.folder for cell in results.rows[1].cells] == ["cells/a", "cells/b"]
    assert results.domains == {"photo": 4}
    assert results.notes == ("a note",)
    tree = json.loads(results.encode())
    dates = [cell["outcome"]["date"] for cell in tree["rows"][1]["cells"]]
    assert dates == ["2026-11-25", "2026-11-26"]
    assert (tree["schema"], tree["failed"], tree["commit"]) == (2, {"x": "why"}, "abc")


def test_figures_are_means_over_classes_if_the_manifest_says_so(tmp_path: Path) -> None:
    """The classes' mean of `outcome` is half of its accuracy."""
    start = {"evaluation": {"average": "classes"}}
    study = read(write(tmp_path, start, teacher="CLIP", compare="Baseline"))
    teacher = CellScore(0, "cells/t", outcome("d", photo=1.0, sketch=0.5))
    students = {
        "Baseline": (CellScore(0, "cells/a", outcome("d", photo=0.5, sketch=0.3)),),
        "Random_Prompt": (CellScore(0, "cells/b", outcome("d", photo=0.7, sketch=0.5)),),
    }
    found_cells = StudyCells(teacher, students, {}, {})
    results = collect_results(study, found_cells, {"photo": 4, "sketch": 4}, "", None, (), {})
    assert [row.mean["mean"] for row in results.rows if row.mean] == [0.375, 0.2, 0.3]
    assert results.rows[0].domains["photo"]["mean"] == 0.5
    found = grid(study.described, results, {})
    assert [round(100 * line[3]["mean"], 6) for line in found.rows] == [37.5, 20, 30]  # type: ignore[call-overload, index]
    assert found.rows[2][4].mean == pytest.approx(0.1)  # type: ignore[union-attr]
    assert found.notes[0].startswith("Mean accuracy of the classes in percent")
    assert json.loads(results.encode())["average"] == "classes"


def test_domains_stand_in_the_order_of_the_data_whatever_the_order_in_a_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, drawn = {"photo": 4, "art": 5, "sketch": 6}, []
    monkeypatch.setattr("dfkd.lab.charts.bars", lambda title, y, rows: drawn.extend(rows))
    study = read(write(tmp_path, kind="bars"))
    score = outcome("d", art=0.1, photo=0.2, sketch=0.3)
    found = StudyCells(None, {"Baseline": (CellScore(0, "cells/a", score),)}, {}, {})
    results = collect_results(study, found, order, "", None, (), {})
    assert list(results.domains.items()) == list(order.items())
    assert grid(study.described, results, {}).head[1:4] == tuple(order)
    chart(study.described, results)
    assert [name for name, _ in drawn[0].values] == [*order, "mean"]


def test_a_case_is_about_the_images_of_its_class_alone(tmp_path: Path) -> None:
    shown = [("photo", 0), ("photo", 1), ("sketch", 1)]
    items = tuple(Item(domain, index, "a.png") for domain, index in shown)
    data = Domains("bundled", ("clock", "book"), items, ())
    case = read(write(tmp_path, kind="case", pictures={"classes": ["clock"]}))
    assert scored_images(case, data) == {"photo": 1, "sketch": 0}
    assert scored_images(read(write(tmp_path)), data) == {"photo": 2, "sketch": 1}


def test_rows_are_compared_seed_by_seed() -> None:
    """The means over domains are 0.3 and 0.6, less 0.2 and 0.3: differences of 10 and 30 points."""
    ours = StudyRow.of(("x",), "student", cells((0.5, 0.1), (0.7, 0.5), (0.9, 0.9)), "images")
    theirs = StudyRow.of(("y",), "student", cells((0.2, 0.2), (0.2, 0.4)), "images")
    found = ours.against(theirs, "images")
    half = 12.7062 * 0.2 / 2  # s = 0.2 / sqrt(2), divided by sqrt(2)
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-5)
