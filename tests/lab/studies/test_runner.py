"""What a study knows of its rows' networks, and what it refuses before it starts."""

from pathlib import Path

import pytest

from dfkd.errors import ManifestError
from dfkd.lab import footprint
from dfkd.lab.studies.reproduce import networks, open_evaluation
from dfkd.lab.studies.results import CellScore, StudyCells
from dfkd.lab.studies.study import read
from tests.evaluation.test_data import write as write_data
from tests.helpers.tiny_study import write
from tests.lab.studies.test_results import outcome


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


def test_a_map_of_a_domain_too_small_to_train_on_is_refused(tmp_path: Path) -> None:
    write_data(tmp_path / "data", "ink/clock/0.png", "ink/clock/1.png", "ink/book/0.png")
    settings = {"evaluation": {"data": str(tmp_path / "data")}}
    shown = {"kind": "embedding", "adaptation": {"domain": "ink"}}
    study = read(write(tmp_path, settings=settings, **shown))
    with pytest.raises(ManifestError, match=r"^adaptation\.domain: a domain to train on needs two"):
        open_evaluation(study)
    write_data(tmp_path / "data", "ink/book/1.png")
    assert open_evaluation(study)
