"""What a study knows of its rows' networks."""

from pathlib import Path

from dfkd.evaluation import footprint
from dfkd.studies.results import CellScore, StudyCells
from dfkd.studies.runner import networks
from dfkd.studies.study import read
from tests.helpers.tiny_study import write
from tests.studies.test_results import outcome


def test_each_row_has_the_size_of_its_own_network(tmp_path: Path) -> None:
    values = {
        "D": {"distillation": {"target": "distances"}},
        "E": {"distillation": {"target": "embedding"}},
        "Longer": {"distillation": {"epochs": 2}},
    }
    study = read(write(tmp_path, axes=[{"name": "Target", "values": values}], seeds=[0]))
    finished = (CellScore(0, "cells/m", outcome("d", photo=1.0)),)
    found = networks(study, StudyCells(None, dict.fromkeys(values, finished), {}, {}))
    for row, network in found.items():
        own = footprint.student(study.rows[row][0].manifest)
        assert (network.name, network.parameters) == (own.name, own.parameters)
    assert found["E"].parameters > found["D"].parameters
    assert found["Longer"] is found["D"]
