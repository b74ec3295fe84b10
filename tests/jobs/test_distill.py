import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfkd.config.manifest import Manifest
from dfkd.errors import Exit
from dfkd.lab.benchmarks.memory import descendants
from dfkd.models.labeller import file_hashes
from dfkd.models.student import load_student
from dfkd.storage import cost_records
from dfkd.storage.local import open_storage
from tests.helpers import jobs
from tests.helpers.machines import title
from tests.helpers.published import flip_bit
from tests.helpers.tiny_models import RESNET, model_config, write_backbone, write_teacher
from tests.helpers.tiny_version import EMBEDDING, publish, write_manifest
from tests.helpers.waiting import wait_for

pytestmark = pytest.mark.heavy


def student(folder: Path) -> Path:
    (found,) = (folder / "run" / "students").iterdir()
    return found


@pytest.mark.faults
@pytest.mark.parametrize("target", ["distances", "embedding"])
def test_a_killed_and_resumed_job_gives_the_undisturbed_student(
    target: str, tmp_path: Path
) -> None:
    config = {**model_config(RESNET), "embed_dim": EMBEDDING}
    teacher = write_teacher(tmp_path / "teacher", config)
    settings = {
        "target": target,
        "weights": str(write_backbone(tmp_path / "backbone.safetensors")),
        "warmup_epochs": 2,
        "epochs": 6,
        "augmentation": ["crop", "noise"],
        "learning_rate": 0.01,
    }
    manifests = {}
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
        manifests[name] = write_manifest(
            tmp_path / name,
            distillation=settings,
            teacher={"model": teacher.model, "weights": teacher.weights},
        )
        publish(Manifest.read(manifests[name]), digests=file_hashes(teacher))
    assert jobs.run_here("distill", manifests["undisturbed"]).returncode == 0

    checkpoints = "killed/run/students/*/checkpoints/*.safetensors"
    jobs.kill_when(
        lambda: len(list(tmp_path.glob(checkpoints))) >= 2, "distill", manifests["killed"]
    )
    assert not (student(tmp_path / "killed") / "student.json").exists()

    done = jobs.run_here("distill", manifests["killed"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"wrote {student(tmp_path / 'killed')}/student.json"
    left, right = (student(tmp_path / name) for name in ("undisturbed", "killed"))
    for name in ("student.safetensors", "student.json"):
        assert (left / name).read_bytes() == (right / name).read_bytes()
    assert not list((right / "checkpoints").iterdir())
    (whole,), (rest,) = (
        cost_records.read(open_storage(str(tmp_path / name / "run")))
        for name in ("undisturbed", "killed")
    )
    assert whole.key == "records/distill-vanilla-s0.json"
    assert (whole.images, whole.workers) == (8 * 4 * 6, 1)  # epochs, steps, images of a step
    assert whole.bytes == len((left / "student.safetensors").read_bytes())
    assert whole.worker_seconds == whole.seconds > 0
    assert 0 < rest.images <= 6 * 4 * 6  # of what the kill had left, after two checkpoints
    events = EventAccumulator(str(left / "tensorboard"))
    events.Reload()
    (views,) = events.Images("augmented")
    assert (views.step, views.width, views.height) == (0, 6 * 32, 32)
    assert list((right / "tensorboard").iterdir())


@pytest.mark.faults
def test_a_terminated_job_ends_its_actors_and_says_so_in_one_line(tmp_path: Path) -> None:
    manifest = write_manifest(
        tmp_path, distillation={"epochs": 4000, "warmup_epochs": 0, "seeds": [0, 1]}
    )
    publish(Manifest.read(manifest))
    process = jobs.start("distill", manifest)
    checkpoints, name = "run/students/*/checkpoints/*.safetensors", "ray::StudentDistiller"
    actors: list[int] = []

    def both_train() -> bool:
        actors[:] = [pid for pid in descendants(process.pid) if name in title(pid)]
        return len(actors) == 2 and any(tmp_path.glob(checkpoints))

    wait_for(both_train, alive=lambda: process.poll() is None)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == Exit.TERMINATED == 143
    assert err.splitlines()[-1] == "terminated; run the same command again, it resumes"
    wait_for(lambda: not any(name in title(pid) for pid in actors), limit=30)
    root = open_storage(str(tmp_path / "run"))
    assert not list(root.list("leases/"))
    entries = cost_records.read(root)
    assert {entry.seed for entry in entries if entry.images} <= {0, 1}
    assert sum(entry.images for entry in entries) > 0


def test_a_finished_student_is_reused_and_each_seed_has_its_own(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, distillation={"epochs": 1, "warmup_epochs": 0})
    publish(Manifest.read(manifest))
    first = jobs.run_here("distill", manifest)
    assert first.returncode == 0, first.stderr
    assert "vanilla timm:test_resnet seed 0: trained" in first.stdout
    written = (student(tmp_path) / "student.safetensors").stat().st_mtime_ns
    second = jobs.run_here("distill", manifest, "--set", "distillation.seeds=[0, 1]")
    assert second.returncode == 0, second.stderr
    assert "vanilla timm:test_resnet seed 0: reused" in second.stdout
    assert "vanilla timm:test_resnet seed 1: trained" in second.stdout
    entries = cost_records.read(open_storage(str(tmp_path / "run")))
    assert [entry.seed for entry in entries] == [0, 1]
    students = sorted((tmp_path / "run" / "students").iterdir())
    assert [found.name[:11] for found in students] == ["vanilla-s0-", "vanilla-s1-"]
    assert (students[0] / "student.safetensors").stat().st_mtime_ns == written
    loaded, meta = load_student(open_storage(str(students[1])))
    assert meta["seed"] == 1
    assert loaded.head.out_features == 3


def test_the_plan_is_printed_without_touching_anything(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    plan = jobs.plan("distill", manifest)
    assert plan["steps_per_epoch"] == 4
    assert plan["steps_per_student"] == 12
    assert plan["images_seen"] == 72
    assert not (tmp_path / "run").exists()


def test_bad_input_ends_in_one_line_and_its_exit_code(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    (tmp_path / "run").mkdir()
    line = jobs.refusal("distill", manifest)
    assert line.startswith("storage.root: must hold a published version")

    version = publish(Manifest.read(manifest))
    line = jobs.refusal("distill", manifest, "--set", "distillation.batch_size=25")
    assert line.startswith("distillation.batch_size: must not exceed the 24 images")

    shard = Path(version.storage.location(next(iter(version.receipts())).shard))
    flip_bit(shard)
    done = jobs.run_here("distill", manifest)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: shard {next(iter(version.receipts())).key}: a sample of ")
    assert "the index says" in last
    assert "Traceback" not in done.stderr
