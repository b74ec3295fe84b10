"""The committed studies: the tables follow from the cells that are stored beside them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from dfkd.lab.studies.output import format_entry, grid
from dfkd.lab.studies.results import CellResult, CellScore, Score, StudyResults, StudyRow
from dfkd.lab.studies.study import STUDIES, Study, files, read
from dfkd.utils.markdown import escape

COMMITTED = [path.parent.name for path in files() if (path.parent / "table.md").exists()]


def test_there_are_committed_studies() -> None:
    assert len(COMMITTED) > 15


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_table_follows_from_its_cells(name: str) -> None:
    """All cells but the milliseconds, which depend on the machine."""
    study = read(STUDIES / name)
    stored = json.loads((STUDIES / name / "results.json").read_text())
    found = grid(study.described, rebuilt(study, stored), {})
    table = (STUDIES / name / "table.md").read_text()
    head, _, *lines = (cells(line) for line in table.splitlines() if line.startswith("|"))
    # The oldest table has no sizes.
    left_out = {"ms"} | ({"MB"} - set(head))
    shown = {escape(title): at for at, title in enumerate(found.head) if title not in left_out}
    assert list(shown) == [title for title in head if title not in left_out]
    for line, row in zip(lines, found.rows, strict=True):
        kept = dict(zip(head, line, strict=True))
        assert {name: format_entry(row[at]) for name, at in shown.items()} == {
            name: kept[name].replace("\\", "") for name in shown
        }


def cells(line: str) -> list[str]:
    """The cells of a line of a table."""
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" | ")]


def rebuilt(study: Study, stored: dict[str, Any]) -> StudyResults:
    """The results that a results.json holds, of this schema or the one before."""
    average = stored.get("average", "images")
    rows = []
    for row in stored["rows"]:
        found = tuple(
            CellScore(cell["seed"], "", outcome(cell, stored["domains"])) for cell in row["cells"]
        )
        rows.append(
            StudyRow.of(tuple(row["names"]), row["model"], found, average, row.get("parameters"))
        )
    return StudyResults(
        study=stored["study"],
        size=stored["size"],
        shows=tuple(stored["shows"]),
        command=stored["command"],
        commit=stored["commit"],
        seeds=tuple(stored["seeds"]),
        domains=stored["domains"],
        classes=tuple(stored["classes"]),
        notes=tuple(stored["notes"]),
        rows=tuple(rows),
        failed=stored["failed"],
        judge=stored.get("judge", ""),
        judge_accuracy=stored.get("judge_accuracy"),
        average=average,
    )


def outcome(cell: dict[str, Any], domains: dict[str, int]) -> CellResult:
    """A stored cell of either schema."""
    if "outcome" in cell:
        tree = cell["outcome"]
        made = [Score(**score) for score in tree["scores"]]
    else:
        tree = cell
        made = list(older(cell, domains))
    return CellResult(
        model="m",
        version=tree.get("version") or "",
        data="0" * 64,
        agreement=tree.get("agreement"),
        recognised=tree.get("recognised"),
        unseen=tree.get("unseen"),
        scores=tuple(made),
        notes=(),
        date="",
        machine={},
        environment={},
    )


def older(cell: dict[str, Any], domains: dict[str, int]) -> Iterator[Score]:
    """The scores of a cell of schema 1."""
    for domain, accuracy in cell["accuracy"].items():
        yield Score(
            domain=domain,
            images=domains[domain] or 1,
            accuracy=accuracy,
            class_mean=cell["class_mean"][domain],
            per_class=cell["per_class"][domain],
        )
