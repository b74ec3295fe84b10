"""Class names in, student out: the whole job as a user runs it, at the smallest size."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfkd import api
from dfkd.cluster.making import identify
from dfkd.config.identity import weights_of
from dfkd.config.manifest import Manifest
from dfkd.config.plan import blocks, tasks
from dfkd.errors import DfkdError, Exit
from dfkd.models.generators.diffusion import Diffusion
from dfkd.storage import cost_records
from dfkd.storage.local import open_storage
from tests.helpers import tiny_version
from tests.helpers.jobs import contents, environment, last_error, load, plan, refusal, run, run_here
from tests.helpers.tiny_version import write_manifest

SMALL = [
    "synthesis.images_per_class=4",
    "synthesis.shard_size=2",
    "generator.diffusers.steps=3",
    "prompts.method=[vanilla, contrastive]",
    "prompts.contrastive.updates=2",
    "distillation.student=timm:test_resnet",
    "distillation.weights=miniature",
    "distillation.warmup_epochs=1",  # as in the paper; the miniature itself has none
    "distillation.epochs=2",
    "distillation.batch_size=8",
    "candidates.styles=1",
    "cluster.workers=1",
]


def settings(root: Path | str, *more: str) -> list[str]:
    chosen = [*SMALL, f"storage.root={root}", *more]
    return [word for setting in chosen for word in ("--set", setting)]


MANIFEST = Path(__file__).parents[2] / "manifests" / "miniature.yaml"


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_from_class_names_to_a_table_and_again(tmp_path: Path) -> None:
    """With classes that nobody prepared, one of them with a meaning, and twice: the second time
    everything is found finished."""
    classes = "classes=[{name: rocket, prompt: space rocket}, tree]"
    arguments = settings(tmp_path / "run", classes)
    found = run("pipeline", MANIFEST, *arguments)
    assert found.returncode == 0, found.stderr
    *table, last = found.stdout.splitlines()
    assert last == f"wrote {tmp_path / 'run' / 'report.html'}"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "rocket" in page
    assert f"--set storage.root={tmp_path / 'run'}" in page
    assert any(line.split()[:1] == ["teacher"] for line in table)
    assert any(line.startswith("accuracy, %") and "contrastive" in line for line in table)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["schema"] == 1
    methods = {(row["model"], row["method"]) for row in results["rows"]}
    assert {("student", "vanilla"), ("student", "contrastive")} <= methods
    assert {("teacher", "zero-shot"), ("text-only", "classifier")} <= methods
    assert all(0.0 <= row["accuracy"] <= 1.0 for row in results["rows"])
    assert (tmp_path / "run" / "contact-sheet.png").read_bytes().startswith(b"\x89PNG")

    entries = cost_records.read(open_storage(str(tmp_path / "run")))
    assert [(entry.stage, entry.method, entry.seed, entry.images) for entry in entries] == [
        ("distill", "contrastive", 0, 24),
        ("distill", "vanilla", 0, 24),
        ("synthesize", "contrastive", None, 8),
        ("synthesize", "vanilla", None, 8),
    ]

    before = contents(tmp_path / "run")
    again = run_here("pipeline", MANIFEST, *arguments)
    assert again.returncode == 0
    changed = {name for name, data in contents(tmp_path / "run").items() if before[name] != data}
    seconds = {"report.html", "candidates.json"}
    measured = r"candidates/.*/(README\.md|candidate\.json)"
    seconds |= {key for key in before if re.fullmatch(measured, key)}
    assert changed <= seconds
    assert {"candidates/teacher/model.onnx", "candidates/teacher/labels.json"} <= before.keys()

    unscored = run_here("pipeline", MANIFEST, *arguments, "--set", "evaluation.data=none")
    assert unscored.returncode == 0, unscored.stderr
    assert unscored.stdout.splitlines()[-1] == f"wrote {tmp_path / 'run' / 'report.html'}"
    assert f"contact sheet {tmp_path / 'run' / 'contact-sheet.png'}" in unscored.stdout
    measured = json.loads((tmp_path / "run" / "candidates.json").read_text())
    assert measured["measure"] == "agreement"
    (teacher,) = [each for each in measured["candidates"] if each["name"] == "teacher"]
    assert teacher["files"]["float32"]["means"] == [1.0]  # these are its own answers
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results

    # Candidates are exported if no student is scored; else the status names the same for ever.
    (tmp_path / "run" / "candidates.json").unlink()
    arguments += ["--set", "evaluation.models=teacher"]
    teacher_alone = run_here("pipeline", MANIFEST, *arguments)
    assert teacher_alone.returncode == 0, teacher_alone.stderr
    *_, exported, sentence, last = teacher_alone.stdout.splitlines()
    assert exported == f"candidates {tmp_path / 'run' / 'candidates.json'}"
    assert sentence.startswith("Ship ")
    assert last == f"wrote {tmp_path / 'run' / 'report.html'}"
    assert "next: nothing to do" in run_here("status", MANIFEST, *arguments).stdout


@pytest.mark.heavy
def test_the_plan_covers_all_stages(tmp_path: Path) -> None:
    planned = plan("pipeline", MANIFEST, *settings(tmp_path / "run"))
    assert set(planned) == {"synthesize", "distill", "evaluate"}
    assert planned["synthesize"]["methods"] == planned["distill"]["methods"]
    assert not (tmp_path / "run").exists()


@pytest.mark.heavy
def test_evaluation_data_is_looked_at_before_anything_is_made(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "photo" / "dog").mkdir(parents=True)
    words = settings(tmp_path / "run", f"evaluation.data={data}")
    assert refusal("pipeline", MANIFEST, *words).startswith("evaluation.data: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.heavy
def test_a_manifest_is_refused_before_a_cluster_is_joined(tmp_path: Path) -> None:
    """Exit code 4 would make a scheduler repeat what no repetition cures."""
    words = settings(tmp_path / "run", "generator.diffusers.weights=nowhere")
    dead = environment() | {"RAY_ADDRESS": "127.0.0.1:9"}
    refused = run("pipeline", MANIFEST, *words, env=dead)
    assert refused.returncode == Exit.USAGE
    assert last_error(refused).startswith("error: generator.diffusers.")


@pytest.mark.heavy
def test_the_generator_is_loaded_by_synthesize_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have many gigabytes."""

    def synthesize(*_: Any, **__: Any) -> Any:
        raise DfkdError("begun")

    monkeypatch.setattr(Diffusion, "load", None)
    monkeypatch.setattr(api, "synthesize", synthesize)
    assert load("pipeline").main([str(MANIFEST), *settings(tmp_path / "run")]) == 1
    assert "begun" in capsys.readouterr().err


@pytest.mark.heavy
def test_every_manifest_of_the_miniature_world_can_be_planned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those of real weights are in test_manifests."""
    job = load("pipeline")
    for file in MANIFEST.parent.rglob("*.yaml"):
        tree = yaml.safe_load(file.read_text())
        if "classes" in tree and tree["teacher"]["model"] == "miniature":
            assert job.main([str(file), "--dry-run"]) == 0, (
                f"{file.name}: {capsys.readouterr().err}"
            )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_version_that_another_job_makes_current_meanwhile_is_not_taken_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_manifest(tmp_path, synthesis={"image_size": 64}, evaluation={"data": "none"})
    manifest = Manifest.read(path)
    own = tiny_version.fill(manifest, tasks(manifest), digests=weights_of(identify(manifest)))
    own.seal_prompts([], {"similarity": 0.5, "own_class": 1.0})
    own.publish(blocks(manifest), {})
    begin = api.synthesize

    def synthesize(*arguments: Any, **options: Any) -> Any:
        """This job's synthesis, after which that of another manifest ends."""
        built = begin(*arguments, **options)
        tiny_version.publish(dataclasses.replace(manifest, seed=1))
        return built

    monkeypatch.setattr(api, "synthesize", synthesize)
    found = run_here("pipeline", path)
    assert found.returncode == 1
    assert "another job has made version" in last_error(found)
    assert not list(tmp_path.rglob("student.json"))
