"""Presets: named settings beneath a manifest's own, or above them on the command line."""

from pathlib import Path

import pytest

from dfkd.config.manifest import Manifest
from dfkd.config.presets import PRESETS
from dfkd.errors import ManifestError
from dfkd.lab.studies.study import read as read_study
from tests.helpers import small_manifest, tiny_study
from tests.helpers.small_manifest import read


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_a_manifest(tmp_path: Path, name: str) -> None:
    manifest = read(tmp_path, preset=name)
    for section, settings in PRESETS[name].items():
        for key, value in settings.items():
            found = manifest.as_dict()[section][key]
            inner = {k: found[k] for k in value} if isinstance(value, dict) else found
            assert inner == value or inner == [value]


def test_paper_is_what_a_manifest_is_by_default(tmp_path: Path) -> None:
    assert read(tmp_path, preset="paper") == read(tmp_path)


def test_a_manifests_own_keys_stand_above_its_preset(tmp_path: Path) -> None:
    found = read(tmp_path, preset="best", prompts={"contrastive": {"updates": 7}})
    best = read(tmp_path, preset="best")
    assert found.prompts.kinds["contrastive"].updates == 7
    assert found.prompts.kinds["contrastive"].bank == best.prompts.kinds["contrastive"].bank
    assert found.distillation == best.distillation


def test_the_command_line_replaces_the_preset_and_leaves_the_manifests_own_keys(
    tmp_path: Path,
) -> None:
    path = small_manifest.write(
        tmp_path, preset="paper", distillation={"augmentation": ["erase"], "epochs": 3}
    )
    found = Manifest.read(path, ("preset=best", "distillation.epochs=4"))
    assert found.distillation.texts == "styles"
    assert found.distillation.augmentation == ("erase",)
    assert found.distillation.epochs == 4
    assert found == Manifest.read(path, ("distillation.epochs=4", "preset=best"))


@pytest.mark.parametrize("value", ["bst", 3, ["paper"]])
def test_an_unknown_preset_is_refused_with_all_that_there_are(
    tmp_path: Path, value: object
) -> None:
    rule = "preset: must be one of paper, best, got"
    with pytest.raises(ManifestError, match=rule):
        read(tmp_path, preset=value)
    with pytest.raises(ManifestError, match=rule):
        read(tmp_path, f"preset={value}")


def test_a_study_takes_presets_as_values_of_an_axis(tmp_path: Path) -> None:
    values = {
        "paper": {"preset": "paper"},
        "more": {"preset": "paper", "distillation": {"batch_size": 9}},
    }
    tiny_study.write(
        tmp_path,
        {"preset": "best", "prompts": {"contrastive": {"updates": 9}}, "distillation": {}},
        axes=[{"name": "Preset", "values": values}],
        seeds=[0],
    )
    paper, more = (cell.manifest for cell in read_study(tmp_path).cells)
    assert paper.distillation.texts == "template"
    assert paper.prompts.kinds["contrastive"].updates == 9  # the base's own key
    assert more.distillation.batch_size == 9
    assert more.distillation.augmentation == paper.distillation.augmentation
