"""Presets: named settings beneath a manifest's own, or above them on the command line."""

from pathlib import Path

import pytest

from dfkd.config.manifest import Manifest
from dfkd.config.presets import PRESETS
from dfkd.errors import ManifestError
from dfkd.studies.study import read as read_study

PLAIN = """
name: x
classes: [dog, cat]
storage: {root: a}
teacher: {model: miniature, weights: miniature}
generator: {config: miniature, weights: miniature}
"""


def read(tmp_path: Path, text: str, *overrides: str) -> Manifest:
    file = tmp_path / "manifest.yaml"
    file.write_text(PLAIN + text)
    return Manifest.read(file, overrides)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_a_manifest(tmp_path: Path, name: str) -> None:
    manifest = read(tmp_path, f"preset: {name}\n")
    for section, settings in PRESETS[name].items():
        for key, value in settings.items():
            found = manifest.as_dict()[section][key]
            inner = {k: found[k] for k in value} if isinstance(value, dict) else found
            assert inner == value or inner == [value]


def test_paper_is_what_a_manifest_is_by_default(tmp_path: Path) -> None:
    assert read(tmp_path, "preset: paper\n") == read(tmp_path, "")


def test_a_manifests_own_keys_stand_above_its_preset(tmp_path: Path) -> None:
    text = "preset: best\nprompts: {guard: {attempts: 7}}\n"
    found, best = read(tmp_path, text), read(tmp_path, "preset: best\n")
    assert found.prompts.guard.attempts == 7
    assert found.prompts.guard.weight == best.prompts.guard.weight
    assert found.distillation == best.distillation


def test_the_command_line_replaces_the_preset_and_leaves_the_manifests_own_keys(
    tmp_path: Path,
) -> None:
    text = "preset: paper\ndistillation: {augmentation: [erase], epochs: 3}\n"
    found = read(tmp_path, text, "preset=best", "distillation.epochs=4")
    assert found.distillation.texts == "styles"
    assert found.distillation.augmentation == ("erase",)
    assert found.distillation.epochs == 4
    assert found == read(tmp_path, text, "distillation.epochs=4", "preset=best")


@pytest.mark.parametrize("value", ["bst", "3", "[paper]"])
def test_an_unknown_preset_is_refused_with_all_that_there_are(tmp_path: Path, value: str) -> None:
    for make in (
        lambda: read(tmp_path, f"preset: {value}\n"),
        lambda: read(tmp_path, "", f"preset={value}"),
    ):
        with pytest.raises(ManifestError, match="preset: must be one of paper, best, fast"):
            make()


def test_a_study_takes_presets_as_values_of_an_axis(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(PLAIN + "preset: best\nprompts: {guard: {attempts: 9}}\n")
    (tmp_path / "study.yaml").write_text(
        "name: s\ntitle: t\nshows: ['-']\nkind: table\nbase: base.yaml\nseeds: [0]\n"
        "axes:\n  - name: Preset\n    values:\n"
        "      paper: {preset: paper}\n"
        "      more: {preset: paper, distillation: {batch_size: 9}}\n"
        "quick: {settings: {storage: {root: b}}}\n"
    )
    paper, more = (cell.manifest for cell in read_study(tmp_path).cells)
    assert paper.distillation.texts == "template"
    assert paper.prompts.guard.attempts == 9  # the base's own key
    assert more.distillation.batch_size == 9
    assert more.distillation.augmentation == paper.distillation.augmentation
