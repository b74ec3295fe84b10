"""The job at every moment of a run's life; `test_status_finished` has its end."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import blocks, tasks
from dfkd.dataset.versions import Version
from dfkd.distillation.student_names import student_name
from dfkd.operations.status.run import read_status
from dfkd.storage import cost_records, lease
from dfkd.storage.base import OPENING_ATTEMPTS, Request
from dfkd.storage.local import open_storage, open_to_read
from dfkd.storage.retries import RetryPolicy
from dfkd.utils.strict_json import canonical
from tests.helpers import jobs, tiny_version
from tests.helpers.jobs import contents, last_error, run_here
from tests.helpers.tiny_version import write_manifest

SHARDS, IMAGES = 6, 24


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A manifest of six shards of four images and one student."""
    return write_manifest(tmp_path)


@pytest.fixture
def manifest(path: Path) -> Manifest:
    return Manifest.read(path)


@pytest.fixture
def root(manifest: Manifest) -> Path:
    return Path(manifest.storage.root)


def filled(manifest: Manifest, count: int) -> Version:
    """The version with the shards of its first tasks, and the summary of its prompts."""
    version = tiny_version.fill(manifest, list(tasks(manifest))[:count])
    version.seal_prompts([], {})
    return version


def status(source: Path | str, *arguments: str) -> dict[str, Any]:
    """What `--json` prints about a manifest or a root."""
    done = run_here("status", source, "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def text(source: Path | str, *arguments: str) -> list[str]:
    done = run_here("status", source, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def age(file: Path, seconds: float) -> None:
    """Make a file as old as that."""
    then = time.time() - seconds
    os.utime(file, (then, then))


@contextlib.contextmanager
def at_work(root: Path, version: str, seconds: float, number: int = 7) -> Iterator[None]:
    """A lease that another process took so many seconds ago."""
    storage, since, names = open_storage(str(root)), time.time() - seconds, (f"vanilla/{version}",)
    key, holder = f"leases/readers/{number:032x}.json", f"far:{number}"
    held = lease.Lease(storage, key, holder, since, names)
    held.renew()
    yield
    storage.delete(held.key)


def test_a_run_that_is_not_begun(path: Path, root: Path) -> None:
    found = status(path, "--set", "distillation.seeds=[0, 1]")
    (version,) = found["synthesize"]
    assert (version["state"], version["id"]) == ("absent", None)
    assert version["shards"] == {"done": 0, "total": SHARDS}
    assert version["images"] == {"done": 0, "total": IMAGES}
    assert version["prompts"] == {"done": 0, "total": 2}
    assert [(s["seed"], s["state"], s["name"]) for s in found["distill"]] == [
        (0, "absent", None),
        (1, "absent", None),
    ]
    assert found["evaluate"]["state"] == found["report"]["state"] == "absent"
    assert text(path, "--set", "seed=3")[-1] == (f"next: dfkd synthesize {path} --set seed=3")
    assert not root.exists()


def test_a_run_interrupted_half_way(path: Path, manifest: Manifest, root: Path) -> None:
    version = filled(manifest, 4)
    before = contents(root)
    lines = text(path)
    assert lines[-1] == f"next: dfkd synthesize {path}"
    (line,) = [line for line in lines if line.startswith("synthesize")]
    assert f"unfinished  {version.id}, shards 4/6, images 16/24, newest shard 00:00 ago" in line
    (found,) = status(path)["synthesize"]
    assert found["images_per_second"] is None
    assert contents(root) == before  # nothing is written

    entry = cost_records.CostRecord(
        stage="synthesize", method="vanilla", seed=None, seconds=8.0, worker_seconds=16.0,
        images=16, bytes=5000, workers=2, device="cpu",
    )  # fmt: skip
    cost_records.add(open_storage(str(root)), entry)
    found = status(path)
    (cost,) = found["cost"]
    assert (cost["seconds"], cost["worker_seconds"], cost["images"]) == (8.0, 16.0, 16)
    assert found["synthesize"][0]["images_per_second"] == 2.0  # of the call that ended
    assert found["synthesize"][0]["seconds_left"] == 4.0
    assert any(line.startswith("cost") and "00:08, workers 00:16" in line for line in text(path))


def test_prompts_come_before_shards(path: Path, manifest: Manifest) -> None:
    version = tiny_version.fill(manifest, [])
    version.storage.put("prompts/00000.parquet", b"")
    assert status(path)["synthesize"][0]["prompts"] == {"done": 1, "total": 2}
    assert any("prompts 1/2, shards 0/6" in line for line in text(path))
    version.quarantine("prompts", "no luck")
    assert any(line.split() == ["prompts", "quarantined", "no", "luck"] for line in text(path))
    version.lift_quarantine()
    version.seal_prompts([], {})
    assert status(path)["synthesize"][0]["prompts"] == {"done": 2, "total": 2}


def test_while_a_process_is_at_work_its_shards_tell_the_rate(
    path: Path, manifest: Manifest, root: Path
) -> None:
    version = filled(manifest, 4)
    folder = root / "data/vanilla/versions" / version.id / "receipts"
    # An earlier call made the first shard, hours ago.
    for file, seconds in zip(sorted(folder.iterdir()), (9000, 300, 200, 100), strict=True):
        age(file, seconds)
    with at_work(root, version.id, 400):
        found = status(path)
        lines = text(path)
    (made,) = found["synthesize"]
    assert made["state"] == "running"
    assert made["newest_shard_seconds"] == pytest.approx(100, abs=5)
    assert made["images_per_second"] == pytest.approx(8 / 300, rel=0.05)
    assert made["seconds_left"] == pytest.approx(8 / (8 / 300), rel=0.05)
    (holder,) = found["at_work"]
    assert (holder["holder"], holder["versions"]) == ("far:7", [f"vanilla/{version.id}"])
    assert holder["since_seconds"] == pytest.approx(400, abs=5)
    assert holder["expires_seconds"] == pytest.approx(lease.SECONDS, abs=5)
    command = f"dfkd synthesize {path}"
    assert (found["next"], found["remark"]) == (command, "once far:7 has ended")
    assert lines[-1] == f"next: {command}   # once far:7 has ended"
    assert any(line.startswith("at work") and "for 06:4" in line for line in lines)


def test_quarantined_tasks_are_named_with_their_reasons(path: Path, manifest: Manifest) -> None:
    version = filled(manifest, 4)
    *_, first, second = tasks(manifest)
    version.storage.put(f"quarantined/{first.id}.json", b"{}")
    assert any(line.endswith("quarantined  reason not stored") for line in text(path))
    version.quarantine(first.id, "no luck")
    found = status(path)
    assert found["synthesize"][0]["quarantined"] == {first.id: "no luck"}
    assert found["remark"] == ""  # the last task is not tried yet
    version.quarantine(second.id, "no luck either")
    lines = text(path)
    assert any(line.split() == [second.id, "quarantined", "no", "luck", "either"] for line in lines)
    command = f"next: dfkd synthesize {path}"
    assert lines[-1].startswith(f"{command}   # tries quarantined tasks again; --accept-partial")

    tiny_version.fill(manifest, [second])  # a worker that was thought dead
    version.publish(blocks(manifest), {}, {first.id})
    found = status(path)
    (made,) = found["synthesize"]
    assert (made["state"], made["shards"]["done"]) == ("published", 5)
    assert (made["images"]["done"], made["failed_images"]) == (20, 0)
    assert made["quarantined"] == {first.id: "no luck"}
    assert found["next"] == f"dfkd distill {path}"


def put_checkpoint(root: Path, name: str, step: int, seconds: float) -> None:
    file = root / "students" / name / "checkpoints" / f"{step:010d}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    age(file, seconds)


def test_the_epoch_of_a_student_in_training(path: Path, manifest: Manifest, root: Path) -> None:
    """An epoch has four steps of six images; there are three epochs."""
    version = tiny_version.publish(manifest)
    more = ["--set", "distillation.seeds=[0, 1, 2]"]
    names = [student_name(manifest, version.fingerprint, "vanilla", seed) for seed in range(3)]
    open_storage(str(root)).put(f"students/{names[0]}/student.json", b"{}")
    put_checkpoint(root, names[1], 4, 60)
    put_checkpoint(root, names[1], 8, 20)
    first, second, third = status(path, *more)["distill"]
    assert (first["state"], first["name"]) == ("finished", names[0])
    assert (second["state"], second["step"]) == ("unfinished", 8)
    assert (second["epoch"], second["epochs"]) == (2.0, 3)
    assert second["age_seconds"] == pytest.approx(20, abs=5)
    assert second["images_per_second"] == pytest.approx(24 / 40, rel=0.01)
    assert second["seconds_left"] == pytest.approx(24 / (24 / 40), rel=0.01)
    assert (third["state"], third["epoch"]) == ("absent", None)
    with at_work(root, version.id, 100):
        found = status(path, *more)
        assert any("epoch 2/3" in line for line in text(path, *more))
        with at_work(root, version.id, 90, number=8):
            both = status(path, *more)
    assert [s["state"] for s in found["distill"]] == ["finished", "running", "absent"]
    assert found["next"] == f"dfkd distill {path} --set 'distillation.seeds=[0, 1, 2]'"
    assert [s["state"] for s in both["distill"]] == ["finished", "running", "running"]
    assert both["remark"] == "once the 2 processes at work have ended"


def test_another_manifest_s_unfinished_version_stands_in_the_way(
    path: Path, manifest: Manifest
) -> None:
    other = filled(manifest, 2)
    found = status(path, "--set", "seed=5")
    own, foreign = found["synthesize"]
    assert (own["state"], own["own"]) == ("absent", True)
    assert (foreign["id"], foreign["own"], foreign["shards"]["done"]) == (other.id, False, 2)
    assert found["next"] == f"dfkd synthesize {path} --set seed=5 --abandon"
    assert other.id in found["remark"]
    other.storage.put("abandoned", b"")
    found = status(path, "--set", "seed=5")
    assert len(found["synthesize"]) == 1
    assert found["next"] == f"dfkd synthesize {path} --set seed=5"


def test_an_unfinished_version_of_any_method_stands_in_the_way(tmp_path: Path) -> None:
    path = write_manifest(
        tmp_path, prompts={"method": ["vanilla", "random"]}, synthesis={"image_size": 64}
    )
    manifest = Manifest.read(path)
    vanilla = tiny_version.publish(manifest, "vanilla")
    tiny_version.fill(dataclasses.replace(manifest, seed=1), [], "vanilla")
    found = status(path)
    assert found["next"] == f"dfkd synthesize {path} --abandon"
    done = run_here("synthesize", path)
    assert (done.returncode, "add --abandon" in last_error(done)) == (2, True)

    random = tiny_version.publish(manifest, "random")
    for name in (
        student_name(manifest, vanilla.fingerprint, "vanilla", 0),
        student_name(manifest, random.fingerprint, "random", 0),
    ):
        open_storage(manifest.storage.root).put(f"students/{name}/student.json", b"{}")
    found = status(path, "--set", "evaluation.data=none")
    assert found["next"].startswith("dfkd pipeline")
    assert found["next"].endswith("--abandon")


def test_a_version_that_is_being_removed_is_removed_first(path: Path, manifest: Manifest) -> None:
    version = tiny_version.publish(manifest)
    tiny_version.publish(dataclasses.replace(manifest, seed=1))
    version.storage.put("removing", f"vanilla/{version.id}".encode())
    for _ in range(2):
        found = status(path)
        assert found["synthesize"][0]["state"] == "removing"
        assert found["next"] == f"dfkd clean {path}"
        assert found["remark"] == f"ends the removal of version {version.id}"
        # A kill after the first deletion.
        version.storage.put("removing", b"begun")
        version.storage.delete("version.json")
    assert run_here("clean", path).returncode == 0
    assert status(path)["next"] == f"dfkd synthesize {path}"


def test_a_version_that_is_not_current_is_made_so(path: Path, manifest: Manifest) -> None:
    first = tiny_version.publish(manifest)
    tiny_version.publish(dataclasses.replace(manifest, seed=1))
    found = status(path)
    (version,) = found["synthesize"]
    assert (version["id"], version["state"], version["current"]) == (first.id, "published", False)
    assert found["next"] == f"dfkd synthesize {path}"


def test_weight_files_are_not_needed_and_the_call_in_progress_counts(
    path: Path, manifest: Manifest
) -> None:
    tiny_version.publish(manifest, digests={"teacher.weights": "ab" * 32})
    assert status(path)["next"] == f"dfkd distill {path}"
    begun = tiny_version.fill(manifest, [], digests={"teacher.weights": "cd" * 32})
    (version,) = status(path)["synthesize"]
    assert (version["id"], version["state"]) == (begun.id, "unfinished")


def test_a_regeneration_that_is_unfinished_goes_on_first(
    path: Path, manifest: Manifest, root: Path
) -> None:
    tiny_version.publish(manifest)
    storage = open_storage(str(root))
    claim = {"identity": identity(dataclasses.replace(manifest, salt=1), {})}
    storage.put("regenerations/00000001/claim.json", canonical(claim))
    assert status(path)["next"] == f"dfkd regenerate {path}"
    for other in ("generator.vqgan.steps=7", "prompts.method=[vanilla, random]"):
        # dfkd regenerate would refuse to resume it with these.
        assert "dfkd synthesize" in status(path, "--set", other)["next"]
    accepted = tiny_version.publish(dataclasses.replace(manifest, salt=1))
    storage.put("regenerations/00000001/finished.json", b"{}")
    found = status(path)
    (version,) = found["synthesize"]
    assert (version["id"], version["current"]) == (accepted.id, True)
    assert found["next"] == f"dfkd distill {path}"
    # dfkd pipeline would export the student, but make the first version current again.
    name = student_name(manifest, accepted.fingerprint, "vanilla", 0)
    storage.put(f"students/{name}/student.json", b"{}")
    found = status(path, "--set", "evaluation.data=none")
    assert (found["candidates"]["state"], found["next"]) == ("absent", None)


def test_a_root_shows_all_that_is_in_it(path: Path, manifest: Manifest, root: Path) -> None:
    first = tiny_version.publish(manifest)
    second = filled(dataclasses.replace(manifest, seed=1), 1)
    put_checkpoint(root, "vanilla-s0-0123456789ab", 7, 10)
    found = status(root)
    states = {v["id"]: (v["state"], v["current"]) for v in found["synthesize"]}
    assert states == {first.id: ("published", True), second.id: ("unfinished", False)}
    (student,) = found["distill"]
    assert (student["seed"], student["step"], student["epoch"]) == (0, 7, None)
    assert found["next"] == "dfkd synthesize MANIFEST"
    second.storage.put("abandoned", b"")
    assert status(root)["next"] == "dfkd distill MANIFEST"
    open_storage(str(root)).put("cells/one/results.json", b"{}")
    assert status(root)["next"] == "dfkd reproduce STUDY"
    assert status(path)["next"] == f"dfkd distill {path}"  # of the manifest's own run


def test_a_root_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused = jobs.refusal("status", tmp_path / "empty")
    assert refused.startswith("manifest: must be a manifest, or a root with")
    assert list((tmp_path / "empty").iterdir()) == []
    jobs.refusal("status", tmp_path / "nothing")


def test_damage_is_one_line(path: Path, manifest: Manifest) -> None:
    version = filled(manifest, 1)
    without_size = canonical(identity(manifest, {}) | {"synthesis.shard_size": 0})
    for content in (b"{}", b"no JSON", without_size):
        version.storage.put("identity.json", content)
        done = run_here("status", Path(manifest.storage.root))
        assert done.returncode == 1
        assert version.storage.location("identity.json") in last_error(done)
    version.storage.put("identity.json", canonical(identity(manifest, {})))
    version.storage.put("version.json", b"{}")
    done = run_here("status", path)
    assert done.returncode == 1
    assert "is not what was published" in last_error(done)


def test_an_unreachable_store_is_worth_a_retry(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    failed: list[int] = []
    monkeypatch.setattr(RetryPolicy, "wait", lambda _, attempt: failed.append(attempt))
    found = run_here("status", path, "--set", "storage.root=s3://bucket/run")
    assert failed == [*range(1, OPENING_ATTEMPTS)]
    assert (found.returncode, found.stdout) == (4, "")
    assert last_error(found).startswith("error: storage: s3://bucket/run")


@pytest.mark.s3
def test_on_s3_receipts_are_listed_and_not_read(path: Path, s3_root: str) -> None:
    there = Manifest.read(path, (f"storage.root={s3_root}",))
    version = filled(there, 5)
    found = status(path, "--set", f"storage.root={s3_root}")
    assert found["root"] == s3_root
    assert found["synthesize"][0]["shards"] == {"done": 5, "total": SHARDS}
    assert status(s3_root)["synthesize"][0]["id"] == version.id

    sent: list[Request] = []
    root = open_to_read(s3_root).observed(sent.append)
    counts = []
    for made in (5, SHARDS):
        sent.clear()
        tiny_version.fill(there, list(tasks(there))[:made])
        read_status(root, there, str)
        counts.append(sorted(request.operation for request in sent))
    assert counts[0] == counts[1]
    # One get for the identity, and four heads: published, abandoned, being removed, are all prompts
    # there? A listing of receipts has a page for each thousand.
    assert [counts[0].count(each) for each in ("get", "head", "list")] == [1, 4, 11]
    assert {request.operation for request in sent} == {"get", "head", "list"}
