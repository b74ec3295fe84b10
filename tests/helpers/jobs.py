"""Running the jobs as a user does: a process, its exit code, and what it printed."""

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from dfkd.commands import main
from dfkd.errors import Exit
from tests.helpers.waiting import wait_for

ROOT = Path(__file__).parents[2]


def command(job: str, manifest: Path, *arguments: str) -> list[str]:
    """The command line of a job."""
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), str(manifest), *arguments]


def load(job: str) -> ModuleType:
    """The module of a command, to be called in this process, which saves an interpreter's start."""
    return importlib.import_module(main.ELSEWHERE.get(job, f"dfkd.commands.{job}"))


def environment() -> dict[str, str]:
    """The environment of a job in a test, without a cluster that happens to be up."""
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return own | {"OMP_WAIT_POLICY": "PASSIVE", "RAY_USAGE_STATS_ENABLED": "0"}


def run(
    job: str, manifest: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a job to its end, in `environment()` or another one."""
    return subprocess.run(
        command(job, manifest, *arguments), capture_output=True, text=True, env=env or environment()
    )


def start(
    job: str, manifest: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """A job in a process group of its own, to be awaited with `communicate`."""
    return subprocess.Popen(
        command(job, manifest, *arguments),
        env=env or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill_when(
    condition: Callable[[], object],
    job: str,
    manifest: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    after: float = 0.0,
) -> None:
    """Start a job, and SIGKILL it and its children some seconds after a condition has come true."""
    words = command(job, manifest, *arguments)
    process = subprocess.Popen(words, env=env or environment(), start_new_session=True)
    wait_for(condition, job, alive=lambda: process.poll() is None, pause=0.01)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def run_here(job: str, manifest: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`run` in this process, which saves an interpreter's start and seconds of imports.

    The job uses the Ray that this process is connected to, if there is one.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = int(load(job).main([str(manifest), *arguments]))
    return subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue())


def refusal(job: str, manifest: Path | str, *arguments: str) -> str:
    """The one line with which a job refuses what it is given; before it, only how it began."""
    found = run_here(job, manifest, *arguments)
    assert (found.returncode, found.stdout) == (Exit.USAGE, "")
    *begun, line = found.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert all(text.startswith(f"dfkd {job}: ") for text in begun)
    return line.removeprefix("error: ")


def plan(job: str, manifest: Path | str, *arguments: str) -> dict[str, Any]:
    """What a job says that it would do."""
    found = run_here(job, manifest, *arguments, "--dry-run")
    assert found.returncode == Exit.DONE, found.stderr
    planned: dict[str, Any] = json.loads(found.stdout)
    return planned


def last_error(found: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed job has for its user."""
    (line,) = [text for text in found.stderr.splitlines() if text.startswith("error: ")]
    return line


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
