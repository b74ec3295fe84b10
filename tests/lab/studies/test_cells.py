"""A cell's name covers what can change its scores, and its content is what was written."""

from dataclasses import replace
from pathlib import Path

import pytest

from dfkd.config.identity import identity
from dfkd.distillation.student_names import student_name
from dfkd.errors import CorruptionError
from dfkd.evaluation.data import Domains, Item
from dfkd.lab.studies.results import (
    CellResult,
    CellStore,
    Score,
    cell_of_teacher,
    evaluation_digest,
)
from dfkd.lab.studies.study import read
from dfkd.storage.local import open_storage
from tests.helpers.tiny_study import EPOCHS, METHODS, write

VERSION, DATA = "1" * 64, "2" * 64
SCORE = Score(domain="photo", images=4, accuracy=0.5, class_mean=0.5, per_class={"clock": 0.5})


@pytest.fixture
def place(tmp_path: Path) -> CellStore:
    return CellStore(open_storage(str(tmp_path)), "vanilla-s0-abc", VERSION, DATA)


def outcome(place: CellStore, accuracy: float = 0.5) -> CellResult:
    return CellResult(
        model=place.model,
        version=place.version,
        data=place.data,
        scores=(replace(SCORE, accuracy=accuracy), replace(SCORE, domain="sketch", accuracy=1.0)),
        notes=(),
        date="2026-11-25",
        machine={"cpus": 2},
        environment={"torch": "2.13"},
    )


def test_the_first_outcome_holds(place: CellStore) -> None:
    assert place.read() is None
    first = place.keep(outcome(place))
    assert first.mean("images") == 0.75
    assert first.mean("classes") == SCORE.class_mean != 0.75
    assert place.keep(outcome(place, 0.25)) == first == place.read()


def test_a_damaged_cell_or_one_of_another_model_is_refused(place: CellStore) -> None:
    key = f"{place.folder}/cell.json"
    place.keep(outcome(place))
    whole = place.storage.get(key)
    for data in (
        *(b"", b"{", b"[]", b'{"schema": 1}', b'{"schema": NaN}'),
        whole.replace(b"vanilla-s0", b"vanilla-s1"),
        whole.replace(VERSION.encode(), b"3" * 64),
        whole.replace(b'"accuracy": 0.5', b'"accuracy": 1.5'),
    ):
        place.storage.put(key, data)
        with pytest.raises(CorruptionError, match=r"cell\.json: is not the cell that was written"):
            place.read()


def test_the_folder_changes_with_all_that_can_change_the_scores(place: CellStore) -> None:
    others = [
        replace(place, model="vanilla-s1-abc"),
        replace(place, version="3" * 64),
        replace(place, data="3" * 64),
        replace(place, held_out="3" * 64),
        replace(place, judge="3" * 64),
        replace(place, unseen_data="3" * 64),
    ]
    assert len({each.folder for each in [place, *others]}) == 7
    assert place.folder == "cells/vanilla-s0-abc-2609937e1bfe"  # of schema 2


def test_students_differ_by_settings_seed_and_version(tmp_path: Path) -> None:
    study = read(write(tmp_path, axes=[{"name": "Epochs", "values": EPOCHS}]))
    names = {
        student_name(cell.manifest, version, cell.manifest.method, cell.seed)
        for cell in study.cells
        for version in (VERSION, "4" * 64)
    }
    assert len(names) == 8


def test_teachers_differ_by_template_and_classes_and_not_by_prompts(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "root"))

    def model(number: int, **changes: object) -> str:
        axes = [{"name": "Method", "values": METHODS}]
        study = read(write(tmp_path, axes=axes, settings=changes))
        found = identity(study.cells[number].manifest, {"teacher.weights": "5" * 64})
        return cell_of_teacher(storage, found, DATA).model

    assert model(0) == model(2) == model(0, generator={"vqgan": {"steps": 9}})
    assert model(0) != model(0, teacher={"template": "One {class}"})
    assert model(0) != model(0, classes=["book", "clock"])


def items(folder: Path, *names: str, content: bytes = b"x") -> tuple[Item, ...]:
    for name in names:
        (folder / name).write_bytes(content + name[-1].encode())
    return tuple(Item("photo", 0, str(folder / name)) for name in names)


def test_the_digest_covers_images_and_labels_and_not_file_names(tmp_path: Path) -> None:
    data = Domains("here", ("a", "b"), items(tmp_path, "1", "2"), ())
    same = Domains("there", ("a", "b"), items(tmp_path, "x2", "x1"), ("note",))
    assert evaluation_digest(data) == evaluation_digest(same)
    others = [
        replace(data, items=items(tmp_path, "1")),
        replace(data, items=(*items(tmp_path, "1"), replace(data.items[1], domain="sketch"))),
        replace(data, items=(*items(tmp_path, "1"), replace(data.items[1], class_index=1))),
        replace(data, classes=("b", "a")),
        replace(data, items=(*data.items, Item("photo", 0, str(tmp_path / "absent")))),
    ]
    assert len({evaluation_digest(each) for each in [data, *others]}) == 6
    before = evaluation_digest(data)
    (tmp_path / "1").write_bytes(b"another")
    assert evaluation_digest(data) != before
