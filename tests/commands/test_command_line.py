"""What every job's command line promises: exit codes, one-line errors, the last line."""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest
from dfkd.errors import (
    CorruptionError,
    DfkdError,
    Exit,
    FingerprintError,
    InfrastructureError,
    ManifestError,
    PartialError,
    WeightsError,
)
from dfkd.storage.base import BUCKET_ROOTS
from tests.helpers import jobs, small_manifest, tiny_version


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(small_manifest.write(tmp_path, storage={"root": "here"}))


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    return {"images": manifest.synthesis.images_per_class}


def run(argv: list[str], error: BaseException | None = None, written: str = "a file") -> int:
    def work(manifest: Manifest, options: argparse.Namespace) -> str:
        if error is not None:
            raise error
        return written

    return command_line.run(command_line.parser("pipeline", "A job."), work, plan, argv)


@pytest.mark.parametrize(("written", "printed"), [("a file", "wrote a file\n"), ("", "")])
def test_the_last_line_says_what_was_written_if_anything_was(
    path: str, capsys: pytest.CaptureFixture[str], written: str, printed: str
) -> None:
    assert run([path], written=written) == Exit.DONE
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DfkdError("a:\n  b"), 1),
        (CorruptionError("shard: sha256 differs"), 1),
        (ManifestError("seed", "a number", "x", "change it"), 2),
        (WeightsError("teacher.weights", "must exist", "x", "change it"), 2),
        (FingerprintError("other manifest"), 2),
        (PartialError("two tasks quarantined"), 3),
        (InfrastructureError("storage is away"), 4),
        (OSError(28, "No space left on device"), 4),
        (OSError(116, "Stale file handle"), 4),
        (OSError(36, "File name too long"), 1),
        (IsADirectoryError(21, "Is a directory"), 1),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), 4),
    ],
)
def test_each_error_has_its_exit_code_and_one_line(
    path: str, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    assert run([path], error) == code
    found = capsys.readouterr()
    assert found.out == ""
    (line,) = found.err.splitlines()
    assert line.startswith("error: ")
    assert " ".join(str(error).split()) in line


PIPED = """
import sys
from dfkd.errors import InfrastructureError
from dfkd.commands import command_line

def work(manifest, options):
    print("so far")
    if {fails}:
        raise InfrastructureError("disk: is away; run again")
    return "a file"

arguments = command_line.parser("pipeline", "")
sys.exit(command_line.run(arguments, work, lambda *both: {{"images": 5}}, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("fails", "options", "code", "error"),
    [
        (True, (), Exit.RETRY, "error: disk: is away; run again"),
        (False, (), Exit.FAILED, "error: stdout: its reader has gone, so the job has stopped"),
        (False, ("--dry-run",), Exit.DONE, ""),
    ],
)
def test_a_job_whose_reader_has_gone_keeps_its_exit_code(
    path: str, fails: bool, options: tuple[str, ...], code: Exit, error: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", PIPED.format(fails=fails), path, *options]
    ended = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, env=environment, text=True, check=False
    )
    os.close(writer)
    assert ended.returncode == code
    assert ended.stderr.startswith(error)
    assert ended.stderr.count("\n") == bool(error)


def run_in_shell(shell: str, script: str, path: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, which the line of a shell starts as `"$@"`."""
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", script, path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("closed", "out", "err"),
    [
        (">&-", "", "error: disk: is away; run again\n"),
        ("2>&-", "so far\n", ""),
        (">&- 2>&-", "", ""),
    ],
)
def test_a_job_with_a_closed_stream_keeps_its_exit_code(
    path: str, closed: str, out: str, err: str
) -> None:
    found = run_in_shell(f'exec "$@" {closed}', PIPED.format(fails=True), path)
    assert (found.returncode, found.stdout, found.stderr) == (Exit.RETRY, out, err)


def test_a_name_that_stdout_cannot_encode_is_escaped(path: str) -> None:
    script = PIPED.replace("so far", "写真").format(fails=False)
    found = run_in_shell('PYTHONIOENCODING=latin-1 exec "$@"', script, path)
    assert (found.returncode, found.stderr) == (Exit.DONE, "")
    assert found.stdout == "\\u5199\\u771f\nwrote a file\n"


def test_an_interrupted_job_says_so_in_one_line(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([path], KeyboardInterrupt()) == Exit.INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted; run the same command again, it resumes\n"


def raise_again() -> str:
    raise SystemExit(signal.SIGTERM)


def swallow() -> str:
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    return "a file"


def wait() -> str:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    return "a file"


@pytest.mark.parametrize("work", [wait, swallow, raise_again], ids=["waiting", "ending", "Ray"])
def test_a_terminated_job_has_the_exit_code_of_sigterm(
    path: str, work: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if the work ends itself well, and while Ray starts, which has a handler of its own."""
    before = signal.getsignal(signal.SIGTERM)
    code = command_line.run(
        command_line.parser("pipeline", "A job."), lambda *_: work(), plan, [path]
    )
    assert code == Exit.TERMINATED == 143
    assert "wrote" not in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_defect_keeps_its_traceback(path: str) -> None:
    with pytest.raises(ZeroDivisionError):
        run([path], ZeroDivisionError())


def test_plan_and_manifest_are_printed_without_work(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = AssertionError("worked")
    assert run([path, "--dry-run", "--set", "synthesis.images_per_class=7"], error) == 0
    assert '"images": 7' in capsys.readouterr().out
    assert run([path, "--print-manifest"], error) == 0
    assert "images_per_class: 3000" in capsys.readouterr().out


def test_wrong_usage_is_exit_code_2(path: str) -> None:
    for argv in ([], [path, "--unknown"], [path, "more"]):
        with pytest.raises(SystemExit) as caught:
            run(argv)
        assert caught.value.code == 2


def test_a_submission_is_named_by_all_that_describes_the_run(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["dfkd pipeline"])

    def name(*words: str) -> str:
        assert run([path, "--submission-id", *words]) == Exit.DONE
        (line,) = capsys.readouterr().out.splitlines()
        return line

    assert name() == name("--set", "storage.root=here")
    assert re.fullmatch(r"dfkd-pipeline-[0-9a-f]{16}", name())
    others = ("storage.root=there", "seed=1", "distillation.epochs=3", "classes=[cat, dog]")
    assert len({name(), *(name("--set", other) for other in others)}) == 5


def test_a_submission_is_named_by_the_job_and_its_own_options(path: str) -> None:
    arguments = command_line.parser("pipeline", "A job.", benchmark=("streaming", "scale"))
    arguments.add_argument("--abandon", action="store_true")
    lines = [["streaming", path], ["scale", path], ["streaming", path, "--abandon"]]
    names = {
        command_line.submission_id(job, Manifest.read(path), arguments.parse_args(line))
        for job in ("distill", "synthesize")
        for line in [*lines, ["streaming", path, "--submission-id"]]
    }
    assert len(names) == 6
    assert all(name.startswith(("dfkd-distill-", "dfkd-synthesize-")) for name in names)


JOBS = sorted(file.stem for file in (jobs.ROOT / "jobs").glob("*.py"))


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--print-manifest"]])
def test_every_job_refuses_a_root_that_no_storage_serves(
    path: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    job: str,
    options: list[str],
) -> None:
    words, key = {
        "benchmark": (["scale", path], "storage.root"),
        "pretrain": ([str(jobs.ROOT / "manifests" / "pretrain.yaml")], "output"),
        "reproduce": (["dictionary"], "settings.storage.root"),
        "labels": ([path, "--classes", "a, b"], "storage.root"),
    }.get(job, ([path], "storage.root"))
    assert jobs.load(job).main([*words, *options, "--set", f"{key}=ftp://x/y"]) == Exit.USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    rule = f"must be a directory, {BUCKET_ROOTS}, got 'ftp://x/y'; give one of them"
    if job == "pretrain":
        rule = "must be a folder of this machine, got 'ftp://x/y'; name one"
    (line,) = printed.err.splitlines()
    assert f"{key.removeprefix('settings.')}: {rule}" in line


READERS = [(job, more) for job in ("clean", "report", "verify") for more in ([], ["--dry-run"])]


@pytest.mark.parametrize(("job", "options"), [("distill", []), *READERS])
def test_a_job_that_reads_a_run_refuses_one_that_is_not_there(
    tmp_path: Path, job: str, options: list[str]
) -> None:
    """And makes nothing there."""
    manifest = tiny_version.write_manifest(tmp_path)
    assert jobs.refusal(job, manifest, *options).startswith("storage.root: must ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_paths_on_the_command_line_are_held_to_the_same_rule(
    capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    for job, words, field in (
        ("report", ["ftp://x/y"], "manifest"),
        ("reproduce", ["dictionary", "--quick", "--output", "ftp://x/y"], "--output"),
    ):
        assert jobs.load(job).main([*words, *options]) == Exit.USAGE
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {field}: must be a directory, {BUCKET_ROOTS}, got ")


def test_an_empty_place_is_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """It would be the study's own, whose table a quick run must not replace."""
    with pytest.raises(SystemExit) as ended:
        jobs.load("reproduce").main(["dictionary", "--quick", "--output", "", "--dry-run"])
    assert ended.value.code == Exit.USAGE
    assert "--output: must name a folder or bucket, got ''" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "good", "bad", "rule"),
    [
        (command_line.at_least(2), "2", ["1", "2.5", "x"], "2 or more"),
        (command_line.seconds(zero=True), "0", ["-1", "inf", "nan", "x"], "seconds, 0 or more"),
        (command_line.seconds(zero=False), "0.5", ["0", "inf"], "seconds, more than 0"),
        (command_line.at_least(0), "1000000", ["1000001", "99999999999"], "at most 1000000"),
        (command_line.seconds(zero=False), "1e9", ["1000000001", "1e300"], "at most 1000000000"),
    ],
)
def test_numbers_that_an_option_cannot_use_are_refused(
    kind: Callable[[str], float], good: str, bad: list[str], rule: str
) -> None:
    assert kind(good) == float(good)
    for word in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"{rule}, got '{word}'"):
            kind(word)
