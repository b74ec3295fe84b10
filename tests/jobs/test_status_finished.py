"""The status of a finished run, and watches, which end when a run is finished."""

import contextlib
import dataclasses
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dfkd.commands import watching
from dfkd.config.manifest import Manifest
from dfkd.config.plan import tasks
from dfkd.errors import InfrastructureError
from dfkd.operations.status.run import read_status
from dfkd.storage.base import MissingObject
from dfkd.storage.local import open_storage, open_to_read
from tests.helpers import finished_run, jobs, tiny_version
from tests.jobs.test_status import age, status, text

REPORT = "report.html"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a finished run of two methods with two students each."""
    folder = tmp_path_factory.mktemp("finished")
    manifest = finished_run.finished(folder)
    open_storage(manifest.storage.root).put("report.html", b"")
    return folder / "manifest.yaml"


def test_a_finished_run_needs_nothing(finished: Path) -> None:
    root = finished.parent / "run"
    found = status(finished)
    assert found["next"] is None
    assert [(v["method"], v["state"], v["current"]) for v in found["synthesize"]] == [
        ("vanilla", "published", True),
        ("contrastive", "published", True),
    ]
    assert [s["state"] for s in found["distill"]] == ["finished"] * 4
    states = {found[part]["state"] for part in ("evaluate", "report", "candidates")}
    assert states == {"finished"}
    assert text(finished)[-1] == "next: nothing to do"

    found = status(root)
    assert found["next"] is None
    assert {v["method"] for v in found["synthesize"]} == {"vanilla", "contrastive"}
    assert len(found["distill"]) == 4


def test_results_without_a_model_or_older_than_a_student_are_outdated(finished: Path) -> None:
    again = f"dfkd evaluate {finished}"
    more = ["--set", "evaluation.models=[teacher, text-only, student]"]
    found = status(finished, *more)
    assert found["evaluate"]["state"] == "outdated"
    assert found["next"].startswith(again)
    results, report = (finished.parent / "run" / name for name in ("results.json", "report.html"))
    try:
        age(results, 60)
        age(report, 120)
        found = status(finished)
        assert (found["evaluate"]["state"], found["next"]) == ("outdated", again)
        assert found["report"]["state"] == "outdated"
        assert status(results.parent)["next"] == "dfkd evaluate MANIFEST"
    finally:
        age(results, -1)
        age(report, -1)
    assert status(finished)["next"] is None


@contextlib.contextmanager
def changed(path: Path, change: Callable[[str], str] | None) -> Iterator[None]:
    """A file of the shared run is another one of the same time inside the block, or is missing."""
    whole, written = path.read_text(), path.stat()
    times = written.st_atime_ns, written.st_mtime_ns
    path.unlink()
    try:
        if change:
            path.write_text(change(whole))
            os.utime(path, ns=times)
        yield
    finally:
        path.write_text(whole)
        os.utime(path, ns=times)


def of_another(text: str) -> str:
    """As after two manifests under one root: another name for the first student in a file."""
    return re.sub(r"(-s\d-[0-9a-f]{11})[0-9a-f]", r"\1_", text, count=1)


@pytest.mark.parametrize(
    ("file", "change", "part", "state", "job"),
    [
        ("results.json", of_another, "evaluate", "outdated", "evaluate"),
        ("results.json", lambda text: text[:100], "evaluate", "outdated", "evaluate"),
        ("report.html", None, "report", "absent", "report"),
        ("candidates.json", None, "candidates", "absent", "pipeline"),
        ("candidates.json", of_another, "candidates", "outdated", "pipeline"),
        ("candidates.json", lambda text: text[:100], "candidates", "outdated", "pipeline"),
    ],
)
def test_what_is_missing_damaged_or_of_other_students_is_made_again(
    finished: Path,
    file: str,
    change: Callable[[str], str] | None,
    part: str,
    state: str,
    job: str,
) -> None:
    with changed(finished.parent / "run" / file, change):
        found = status(finished)
    assert (found[part]["state"], found["next"]) == (state, f"dfkd {job} {finished}")


def test_a_report_of_a_root_alone_is_made_of_the_root(finished: Path) -> None:
    root = finished.parent / "run"
    with changed(root / "report.html", None):
        assert status(root)["next"] == f"dfkd report {root}"


def test_without_labelled_images_there_is_a_report_about_candidates(finished: Path) -> None:
    settings = ("--set", "evaluation.data=none")
    found = status(finished, *settings)
    assert (found["evaluate"]["state"], found["report"]["state"]) == ("not planned", "finished")
    assert found["next"] is None
    candidates, report = (finished.parent / f"run/{name}" for name in ("candidates.json", REPORT))
    with changed(report, None):
        assert status(finished, *settings)["next"].startswith("dfkd report ")
        with changed(candidates, None):  # which the page is about, and the job makes both
            assert status(finished, *settings)["next"].startswith("dfkd pipeline ")


def test_a_report_older_than_the_candidates_is_outdated(finished: Path) -> None:
    report = finished.parent / "run" / REPORT
    results = finished.parent / "run/results.json"
    try:
        age(report, 60)
        age(results, 120)  # of students that are older still
        for student in finished.parent.glob("run/students/*/student.json"):
            age(student, 180)
        found = status(finished)
        assert (found["evaluate"]["state"], found["report"]["state"]) == ("finished", "outdated")
        assert found["next"] == f"dfkd report {finished}"
    finally:
        age(report, -1)
        age(results, -1)


def test_each_architecture_is_told_and_one_that_is_missing_comes_next(finished: Path) -> None:
    more = ("--set", "distillation.student=[timm:test_resnet, timm:test_efficientnet]")
    found = status(finished, *more)
    assert [(s["method"], s["architecture"], s["seed"], s["state"]) for s in found["distill"]] == [
        *(("vanilla", "timm:test_resnet", seed, "finished") for seed in (0, 1)),
        *(("contrastive", "timm:test_resnet", seed, "finished") for seed in (0, 1)),
        *(("contrastive", "timm:test_efficientnet", seed, "absent") for seed in (0, 1)),
    ]
    assert found["next"].startswith("dfkd distill ")
    assert (found["evaluate"]["state"], found["candidates"]["state"]) == ("finished", "outdated")
    lines = [line for line in text(finished, *more) if line.startswith("distill")]
    assert "contrastive timm:test_efficientnet seed 1" in lines[-1]
    assert all(student["architecture"] is None for student in status(finished)["distill"])


@contextlib.contextmanager
def start(
    source: Path, *arguments: str, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """The job in a process that Ctrl-C reaches; one that still runs at the end is killed."""
    with subprocess.Popen(
        jobs.command("status", source, *arguments),
        env=jobs.environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts commands in its background with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_a_watch_on_a_pipe_prints_a_line_for_each_change_until_it_is_stopped(
    tmp_path: Path,
) -> None:
    path = tiny_version.write_manifest(tmp_path)
    manifest = Manifest.read(path)
    made = list(tasks(manifest))
    tiny_version.fill(manifest, made[:4])
    with start(path, "--watch", "0.2") as process:
        assert process.stdout is not None
        assert " vanilla 4/6 shards; 0/1 students; " in process.stdout.readline()
        time.sleep(1)  # looks that find nothing new
        tiny_version.fill(manifest, made[4:5])
        assert " vanilla 5/6 shards; " in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out.strip(), errors) == (0, "", "")


def test_a_watch_ends_when_everything_is_finished(finished: Path) -> None:
    (line,) = text(finished, "--watch")
    assert "; 4/4 students; results.json finished; report.html finished; next: nothing" in line
    done = jobs.run_here("status", finished, "--watch", "1", "--json")
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["next"] is None


@pytest.mark.parametrize("error", [InfrastructureError("away"), MissingObject("away")])
def test_a_watch_outlives_a_store_that_is_away_and_a_removal(
    finished: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    root, manifest = open_to_read(str(finished.parent / "run")), Manifest.read(finished)
    done = read_status(root, manifest, str)
    looks = [dataclasses.replace(done, next="more"), error, done]

    def look() -> Any:
        found = looks.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    watching.watch(look, as_json=False, seconds=0.01)
    printed = capsys.readouterr()
    shown = [line.rpartition("next: ")[2] for line in printed.out.splitlines()]
    assert shown == ["more", "nothing to do"]
    assert printed.err.strip().endswith("away")


@pytest.mark.heavy
def test_a_watch_on_a_terminal_redraws_the_whole_status(finished: Path) -> None:
    reader, writer = pty.openpty()
    with start(finished, "--watch", stdout=writer) as process:
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    shown = os.read(reader, 1 << 16).decode()
    os.close(reader)
    os.close(writer)
    assert shown.startswith("\x1b[2J\x1b[H")
    assert shown.rstrip().endswith("next: nothing to do")


@pytest.mark.heavy
def test_neither_torch_nor_ray_is_imported(finished: Path) -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'ray', 'boto3', 'webdataset'} & sys.modules.keys()\n"
    )
    job = jobs.ROOT / "jobs" / "status.py"
    done = subprocess.run(
        [sys.executable, "-c", program, str(job), str(finished)],
        env=jobs.environment() | {"PYTHONPATH": f"{jobs.ROOT}:{jobs.ROOT / 'jobs'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "next: nothing to do"
