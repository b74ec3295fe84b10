"""What is refused before the hours of synthesis."""

from pathlib import Path

import pytest

from dfkd.config.manifest import Manifest
from dfkd.errors import ManifestError, WeightsError
from dfkd.models.teacher import Teacher
from dfkd.operations import preflight
from dfkd.operations.preflight import (
    check_batches,
    check_distillation,
    check_evaluation,
    check_synthesis,
    check_towers,
    note_surprises,
)
from tests.helpers import small_manifest
from tests.helpers.inversion_runs import read as inversion
from tests.helpers.tiny_models import VIT, model_config, write_backbone, write_teacher


def test_a_batch_that_no_epoch_will_fill_is_refused(tmp_path: Path) -> None:
    check_batches(small_manifest.read(tmp_path))
    with pytest.raises(ManifestError, match=r"batch_size: must not exceed the \d+ images"):
        check_batches(small_manifest.read(tmp_path, "distillation.batch_size=100000"))


@pytest.mark.parametrize(("content", "rule"), [(None, "existing file"), (b"{}", "")])
def test_each_student_is_built_and_its_weights_are_read(
    tmp_path: Path, content: bytes | None, rule: str
) -> None:
    first, second = write_backbone(tmp_path / "first.safetensors"), tmp_path / "second.safetensors"
    write_backbone(second, "test_efficientnet")
    students = "distillation.student=[timm:test_resnet, timm:test_efficientnet]"
    settings = (students, f"distillation.weights=[{first}, {second}]")
    built = check_distillation(small_manifest.read(tmp_path, *settings))
    sizes = [sum(each.numel() for each in student.backbone.parameters()) for student in built]
    assert sizes == [372_688, 99_196]
    second.unlink()
    if content is not None:
        second.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"^distillation\.weights: .*{rule}"):
        check_distillation(small_manifest.read(tmp_path, *settings))


def test_only_what_is_scored_needs_data(tmp_path: Path) -> None:
    check_evaluation(small_manifest.read(tmp_path, "evaluation.data=none"))
    with pytest.raises(ManifestError, match=r"^evaluation\.data: "):
        check_evaluation(small_manifest.read(tmp_path, "evaluation.data=missing"))


@pytest.mark.parametrize("data", ["bundled", "none"])
def test_a_tower_that_cannot_be_loaded_is_refused(tmp_path: Path, data: str) -> None:
    wrong = "candidates.towers=[{model: RN50, weights: none.pt}]"
    with pytest.raises(ManifestError, match=r"^candidates\.towers\.0\.weights: "):
        check_evaluation(small_manifest.read(tmp_path, f"evaluation.data={data}", wrong))


@pytest.mark.parametrize("towers", ["[teacher]", "[labeller]", "[]"])
def test_a_candidate_must_fit_into_one_file(
    towers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger teacher or labeller can teach, but not be shipped."""
    monkeypatch.setattr(preflight, "_ONE_FILE", 1e4)
    config = write_teacher(tmp_path / "other", model_config(VIT))
    labeller = f"distillation.labeller={{model: {config.model}, weights: {config.weights}}}"
    manifest = small_manifest.read(tmp_path, f"candidates.towers={towers}", labeller)
    if towers == "[]":
        check_towers(manifest)
        return
    named = {"[teacher]": "teacher", "[labeller]": r"distillation\.labeller"}[towers]
    with pytest.raises(ManifestError, match=rf"^{named}\.model: is a candidate.* at most 2 GB"):
        check_towers(manifest)


def test_names_that_the_bundled_model_does_not_draw_are_noted(
    teacher: Teacher, capsys: pytest.CaptureFixture[str]
) -> None:
    miniature = Path(__file__).parents[2] / "manifests/miniature.yaml"
    note_surprises(Manifest.read(miniature, ("classes=[Cat, gazebo]",)), teacher)
    told = capsys.readouterr().err
    assert "was not trained to draw 'gazebo'; it draws 70 things" in told
    note_surprises(Manifest.read(miniature), teacher)
    inverts = ("classes=[Cat, gazebo]", "synthesis.source=cmi")  # which draws nothing
    note_surprises(Manifest.read(miniature, inverts), teacher)
    assert capsys.readouterr().err == ""


def test_sizes_that_a_method_cannot_generate_are_refused() -> None:
    """Only the methods that cannot generate them refuse them."""
    check_synthesis(inversion("synthesis.source=[dfad, pre]"))
    check_synthesis(inversion("synthesis.source=cmi", "synthesis.image_size=72"))
    with pytest.raises(
        ManifestError, match=r"image_size: must be a multiple of 16 .*got 72; use 64"
    ):
        check_synthesis(inversion("synthesis.source=[cmi, pre]", "synthesis.image_size=72"))
    few = ("synthesis.dfad.rounds=1", "synthesis.pre.rounds=1")
    check_synthesis(inversion("synthesis.source=dfad", "synthesis.shard_size=3", *few))
    with pytest.raises(ManifestError, match=r"dfad\.rounds: .* each of the 2 parts, got 1; raise"):
        check_synthesis(inversion("synthesis.source=[cmi, dfad]", *few))


def test_a_name_too_long_for_a_styled_sentence_is_told_as_the_class_s(tmp_path: Path) -> None:
    config = write_teacher(tmp_path / "short", model_config(VIT, context_length=9))
    settings = (
        f"teacher={{model: {config.model}, weights: {config.weights}, template: '{{class}}'}}",
        "evaluation.models=text-only",
    )
    check_towers(small_manifest.read(tmp_path, *settings, "classes=[dog, hot dog]"))
    with pytest.raises(ManifestError, match=r"^classes: .* at most 7 tokens, this one 8.*'dog dog"):
        check_towers(small_manifest.read(tmp_path, *settings, "classes=[hot dog, dog dog dog]"))


@pytest.mark.parametrize("scored", ["student", "[student, text-only]"])
def test_styled_texts_must_fit_the_labeller_s_context(tmp_path: Path, scored: str) -> None:
    """Whose context may be shorter than the teacher's."""
    config = write_teacher(tmp_path / "short", model_config(VIT, context_length=8))
    settings = (
        f"distillation.labeller={{model: {config.model}, weights: {config.weights}}}",
        f"evaluation.models={scored}",
        "prompts.template='{class} in the style of {style}'",
        "prompts.styles=[one and two and three and four]",
    )
    check_towers(small_manifest.read(tmp_path, *settings))
    with pytest.raises(ManifestError, match=r"^prompts\.styles: .* at most 6 tokens"):
        check_towers(small_manifest.read(tmp_path, *settings, "distillation.texts=styles"))
