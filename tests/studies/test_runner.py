"""What a study knows of its rows' networks."""

from pathlib import Path

from dfkd.evaluation import footprint
from dfkd.studies.cells import CellResult, Score
from dfkd.studies.results import CellScore, StudyCells
from dfkd.studies.runner import networks
from dfkd.studies.study import read
from tests.helpers.tiny_study import write


def finished() -> tuple[CellScore, ...]:
    score = Score(domain="photo", images=1, accuracy=1.0, class_mean=1.0, per_class={})
    outcome = CellResult(
        model="m",
        version="",
        data="2" * 64,
        scores=(score,),
        notes=(),
        date="d",
        machine={},
        environment={},
    )
    return (CellScore(0, "cells/m", outcome),)


def test_each_row_has_the_size_of_its_own_network(tmp_path: Path) -> None:
    values = {
        "D": {"distillation": {"target": "distances"}},
        "E": {"distillation": {"target": "embedding"}},
        "Longer": {"distillation": {"epochs": 2}},
    }
    study = read(write(tmp_path, axes=[{"name": "Target", "values": values}], seeds=[0]))
    found = networks(study, StudyCells(None, dict.fromkeys(values, finished()), {}, {}))
    for row, network in found.items():
        own = footprint.student(study.rows[row][0].manifest)
        assert (network.name, network.parameters) == (own.name, own.parameters)
    assert found["E"].parameters > found["D"].parameters
    assert found["Longer"] is found["D"]
