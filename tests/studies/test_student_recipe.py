"""The study of the student's recipe: labels of another spread, agreement, cells, the job."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.dataset.loader import Stream
from dfkd.errors import ManifestError
from dfkd.studies import student_recipe
from dfkd.studies.student_recipe import LabelSpread, Recipe, RecipeResult, RecipeStudy
from dfkd.utils.yaml import check
from tests.helpers import jobs
from tests.helpers.tiny_version import publish, write_manifest

OWN, CLIP = LabelSpread(mean=1.0, std=0.25), LabelSpread(mean=0.87, std=0.04)


def described(**changes: object) -> RecipeStudy:
    tree = {
        "name": "tiny",
        "title": "Tiny",
        "base": "manifest.yaml",
        "rows": {
            "one": {"settings": {}},
            "two": {"settings": {"schedule": "constant"}, "against": "one"},
        },
        "seeds": [0, 1],
    }
    return check(RecipeStudy, {**tree, **changes})


@given(st.lists(st.floats(0, 4), min_size=2, max_size=8))
def test_moved_labels_have_the_wanted_spread_and_the_same_nearest_class(found: list[float]) -> None:
    plain = torch.tensor([found])
    label = student_recipe.rescaled(lambda *_: plain, OWN, CLIP)
    moved = label(torch.empty(1))
    torch.testing.assert_close((moved - 0.87) / 0.04, (plain - 1.0) / 0.25, atol=1e-4, rtol=1e-4)
    assert moved[0, plain.argmin()] == moved.min()


class Fixed(torch.nn.Module):
    """A student that gives the distances it was made with, image after image."""

    def __init__(self, distances: Tensor) -> None:
        super().__init__()
        self.distances = distances

    def forward(self, pixels: Tensor) -> Tensor:
        return self.distances[: len(pixels)]


def test_agreement_is_the_share_of_images_with_the_same_nearest_class(tmp_path: Path) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    stream = Stream(publish(manifest), 32, 24, seed=0)
    (batch,) = stream.batches(0)
    answers = batch.distances.clone()
    assert student_recipe.agreement(Fixed(answers), stream) == 1.0
    answers[:6] = -answers[:6]  # which moves the least to the largest
    assert student_recipe.agreement(Fixed(answers), stream) == pytest.approx(18 / 24)


def test_the_table_compares_each_row_with_the_reference_by_seed() -> None:
    outcomes = {
        ("one", 0): RecipeResult(0.5, {"a": 0.2, "b": 0.4}),
        ("one", 1): RecipeResult(0.7, {"a": 0.4, "b": 0.6}),
        ("two", 0): RecipeResult(0.5, {"a": 0.3, "b": 0.5}),
    }
    one, two = student_recipe.grid(described(), outcomes).rows
    assert one[1]["mean"] == pytest.approx(0.6)  # type: ignore[call-overload,index]
    assert one[-2:] == (None, None)
    assert two[-2].mean == pytest.approx(0.1)  # type: ignore[union-attr]
    # a single pair has no interval
    assert two[-2].low is None  # type: ignore[union-attr]
    assert two[-1]["mean"] == pytest.approx(0.4 / 0.3)  # type: ignore[call-overload,index]


def test_a_row_is_compared_with_another_row() -> None:
    rows = {"one": {"settings": {}, "against": "three"}}
    with pytest.raises(ManifestError, match=r"rows.one.against: must be among rows.*three"):
        described(rows=rows)


def test_rows_are_manifests(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    with pytest.raises(ManifestError, match=r"distillation\.schedle"):
        student_recipe.manifest_of(described(), tmp_path, Recipe(settings={"schedle": "cosine"}))


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_a_killed_study_goes_on_and_its_table_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    base = write_manifest(tmp_path, distillation={"labels": "live", "epochs": 1})
    tree = yaml.safe_load(base.read_text())
    tree["classes"] = ["clock", "book", "cat"]  # of the bundled evaluation data
    tree["synthesis"] |= {"steps": 1, "images_per_class": 4}
    tree["cluster"] = {"workers": 1}
    base.write_text(yaml.safe_dump(tree))
    study = described(seeds=[0], held_out_images=2).as_dict()
    path.write_text(yaml.safe_dump(study))
    first = jobs.run_here("recipe", path, "--at-once", "1")
    assert first.returncode == 0, first.stderr
    table = (tmp_path / "table.md").read_text()
    assert "| two" in table
    results = json.loads((tmp_path / "results.json").read_text())
    assert [each["row"] for each in results["outcomes"]] == ["one", "two"]
    cells = sorted((tmp_path / "run" / "recipe").iterdir())
    (cells[0] / "outcome.json").unlink()
    assert jobs.run_here("recipe", path, "--at-once", "1").returncode == 0
    assert (tmp_path / "table.md").read_text() == table
