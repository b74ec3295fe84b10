"""`ray job submit` as cluster/README.md shows it: the real command line against a real head."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from dfkd.config.manifest import Manifest
from dfkd.config.plan import tasks
from dfkd.utils.hardware import cpu_count
from nodes import RAY, RayCluster
from tests.helpers.jobs import ROOT, load
from tests.helpers.prometheus import scraped
from tests.helpers.waiting import wait_for

PATIENCE = 600.0
"""Seconds for anything to happen, on a machine that does other things too."""

MANIFEST = "manifests/miniature.yaml"
SMALL = [
    "classes=[cat, house, key]",
    "prompts.method=vanilla",
    "synthesis.images_per_class=4",
    "synthesis.shard_size=2",
    "generator.diffusers.steps=40",
    "distillation.student=timm:test_resnet",
    "distillation.weights=miniature",
    "distillation.epochs=2",
    "distillation.batch_size=6",
    "evaluation.models=teacher",
]


@dataclass(frozen=True)
class Head:
    """A head that takes submissions, and works on them itself."""

    cluster: RayCluster

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of Ray's own command line in the repository's folder, to its end."""
        return subprocess.run(
            [RAY, *words],
            cwd=ROOT,
            env=self.cluster.environment | {"RAY_API_SERVER_ADDRESS": self.cluster.dashboard},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, path: str, body: bytes | None = None) -> dict[str, str]:
        """What the jobs API answers about a submission."""
        token = {"Authorization": f"Bearer {self.cluster.token}"}
        url = f"{self.cluster.dashboard}/api/jobs/{path}"
        with urllib.request.urlopen(urllib.request.Request(url, body, token), timeout=60) as answer:
            found: dict[str, str] = json.load(answer)
            return found

    def submit(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """As cluster/README.md has it."""
        words = shlex.split(command)
        return self.ray("job", "submit", "--working-dir", ".", *options, "--", *words)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    variables = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        # A level is shown for two such intervals after its process has ended.
        "RAY_metrics_report_interval_ms": "60000",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        with RayCluster(variables, cpus=2) as cluster:
            yield Head(cluster)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the run that the tests of this module make together, in their order."""
    return tmp_path_factory.mktemp("submitted") / "run"


def command(job: str, root: Path) -> str:
    settings = [word for each in [*SMALL, f"storage.root={root}"] for word in ("--set", each)]
    return shlex.join(["python", f"jobs/{job}.py", MANIFEST, *settings])


def submission(job: str, root: Path) -> str:
    words = [sys.executable, *shlex.split(command(job, root))[1:], "--submission-id"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def lines(output: str) -> list[dict[str, object]]:
    """The lines of JSON in a log."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def receipts(root: Path) -> set[str]:
    files = root.glob("data/*/versions/*/receipts/*.json.gz")
    return {file.name.partition(".")[0] for file in files}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_job_is_resumed_by_the_next_submission(head: Head, root: Path) -> None:
    name, work = submission("synthesize", root), command("synthesize", root)
    assert re.fullmatch(r"dfkd-synthesize-[0-9a-f]{16}", name)
    begun = head.submit(work, "--submission-id", name, "--no-wait")
    assert begun.returncode == 0, begun.stdout
    ended = ("SUCCEEDED", "FAILED", "STOPPED")

    def has_ended() -> bool:
        return head.call(name)["status"] in ended

    wait_for(lambda: receipts(root) or has_ended(), "a shard", limit=PATIENCE)
    head.call(f"{name}/stop", b"")  # as `ray job stop` does, but before all is made
    wait_for(has_ended, "an end", limit=PATIENCE)

    twice = head.submit(work, "--submission-id", name)
    assert twice.returncode == 1
    assert f"{name} already exists" in twice.stdout

    before = receipts(root)
    assert before
    found = head.submit(work, "--submission-id", f"{name}-2")
    assert found.returncode == 0, found.stdout
    manifest = Manifest.read(str(ROOT / MANIFEST), tuple(SMALL))
    assert receipts(root) == {task.id for task in tasks(manifest)}
    assert before.isdisjoint(line["task"] for line in lines(found.stdout))
    assert "vanilla: 12 images, 0 failed" in found.stdout
    assert f"wrote {root}/data/vanilla/versions/" in found.stdout
    # Usually the second submission made the rest; on a slow machine the first was not stopped.
    logs = head.call(f"{name}/logs")["logs"] + found.stdout
    assert re.search(r"vanilla images: +100%", logs)
    told = [line["task"] for line in lines(logs) if line["event"] == "task"]
    assert told
    assert len(told) == len(set(told))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_submitted_job_refuses_a_root_in_the_folder_that_ray_removes(head: Head) -> None:
    found = head.submit(command("synthesize", Path("runs/submitted")))
    (line,) = {line for line in found.stdout.splitlines() if line.startswith("error: ")}
    assert line.startswith("error: storage.root: must be s3://")
    assert "failed with exit code 2" in found.stdout


@pytest.mark.slow
def test_a_submitted_driver_computes_on_all_cpus_of_its_node(head: Head) -> None:
    code = "from dfkd.utils.hardware import thread_limit; print(100, thread_limit(0).__enter__())"
    found = head.submit(f'python -c "{code}"')
    assert found.returncode == 0, found.stdout
    assert f"\n100 {cpu_count()}\n" in found.stdout


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_failing_job_gives_one_line_and_its_exit_code(head: Head, tmp_path: Path) -> None:
    found = head.submit(f"{command('distill', tmp_path)} --set distillation.epochs=none")
    assert found.returncode == 1
    # Ray's command line shows the end of the log once more.
    (line,) = {line for line in found.stdout.splitlines() if line.startswith("error: ")}
    assert line.startswith("error: distillation.epochs: ")
    assert "Traceback" not in found.stdout
    assert "failed with exit code 2" in found.stdout


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_what_submitted_jobs_measure_is_at_the_head_s_endpoint(head: Head, root: Path) -> None:
    found = head.submit(command("distill", root))
    assert found.returncode == 0, found.stdout
    series = scraped(head.cluster.metrics)
    run = {"manifest": "miniature", "method": "vanilla"}

    def total(name: str, **labels: str) -> float:
        return sum(value for own, value in series[name] if labels.items() <= own.items())

    assert total("ray_dfkd_distillation_samples_total", **run) == 2 * 12
    assert total("ray_dfkd_distillation_steps_total", **run) == 2 * 2
    assert total("ray_dfkd_distillation_step_seconds_total", **run) > 0
    assert total("ray_dfkd_uploads_total") > 0
    assert total("ray_dfkd_upload_bytes_total") > 0


@pytest.mark.slow
def test_who_has_no_token_is_refused(head: Head) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{head.cluster.dashboard}/api/jobs/", timeout=60)
    assert caught.value.code == 401


def test_what_is_uploaded_is_what_a_job_needs(tmp_path: Path) -> None:
    """By Ray's own packaging, from a folder that has been worked in."""
    folder = tmp_path / "clone"
    needed = (
        "jobs/pipeline.py",
        "dfkd/api.py",
        "dfkd/bundled/teacher.safetensors",
        "manifests/miniature.yaml",
        "manifests/studies/runs/manifest.yaml",
    )
    for name in (
        *needed,
        ".git/objects/pack/large.pack",
        ".venv/lib/python3.11/site-packages/torch/lib/large.so",
        ".cache/icons/large.json",
        "runs/miniature/data/large.tar",
        "build/docs/index.html",
        ".env",
        "environment/bin/python",
        "tests/test_api.py",
        "dfkd/__pycache__/api.cpython-311.pyc",
        "dfkd.egg-info/PKG-INFO",
        ".mypy_cache/3.11/api.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("something")
    shutil.copy(ROOT / ".rayignore", folder)
    package = tmp_path / "package.zip"
    create_package(str(folder), package, include_gitignore=False)
    with zipfile.ZipFile(package) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert names - {".rayignore"} == set(needed)


WORDS = {
    "audit": "manifests/miniature.yaml",
    "benchmark": "scale manifests/miniature.yaml",
    "clean": "manifests/miniature.yaml --dry-run",
    "distill": "manifests/miniature.yaml",
    "evaluate": "manifests/miniature.yaml",
    "fewshot": "manifests/miniature.yaml",
    "labels": 'manifests/miniature.yaml --set distillation.target=both --classes "anchor, bus"',
    "regenerate": "manifests/miniature.yaml --set prompts.method=contrastive",
    "ship": "manifests/miniature.yaml",
    "synthesize": "manifests/miniature.yaml",
    "verify": "manifests/miniature.yaml",
}
"""Of the jobs that cluster/README.md does not show."""


def test_every_job_can_be_submitted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "cluster" / "README.md").read_text()
    shown = re.findall(r"ray job submit --working-dir \. -- python (jobs/(\w+)\.py .*)", text)
    shown += re.findall(r'RUN="(jobs/(\w+)\.py .*)"', text)
    own = "--set storage.root=s3://example-bucket/dfkd"
    shown += [(f"jobs/{job}.py {words} {own}", job) for job, words in WORDS.items()]
    there = {file.stem for file in (ROOT / "jobs").glob("*.py")}
    assert there <= {job for _, job in shown}
    monkeypatch.chdir(ROOT)
    for line, job in (each for each in shown if each[1] in there):
        script, *words = shlex.split(line)
        monkeypatch.setattr(sys, "argv", [script])
        module = load(job)
        assert module.main([*words, "--submission-id"]) == 0
        assert re.fullmatch(rf"dfkd-{job}-[0-9a-f]{{16}}\n", capsys.readouterr().out)
