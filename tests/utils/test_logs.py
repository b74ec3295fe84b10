"""The lines of a job's log: one of JSON for each task, on stderr or, beside a bar, in a file."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from datetime import datetime
from pathlib import Path
from unittest.mock import Mock

import pytest

from dfkd.utils import logs
from tests.helpers.jobs import ROOT

MADE = {
    "run": "0123456789abcdef", "task": "0003-00001", "attempt": 2, "seconds": 4.213, "images": 11,
    "failed": 1, "bytes": 1234, "node": "10.0.0.7",
}  # fmt: skip
LOST = {"run": "0123456789abcdef", "task": "0003-00002", "images": 12, "reason": "no\nluck"}
TALK = f"""
from contextlib import nullcontext
from dfkd.utils import logs
with logs.json_log("synthesize", ""):
    logs.log_event("task", **{MADE})
    logs.log_event("quarantined", **{LOST})
"""


def test_a_task_is_one_line_of_json_on_stderr_if_a_job_asks_for_it() -> None:
    silent = TALK.replace('logs.json_log("synthesize", "")', "nullcontext()")
    command = [sys.executable, "-c", silent]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    command[-1] = TALK
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr
    done, quarantined = map(json.loads, found.stderr.splitlines())
    for line in (done, quarantined):
        assert datetime.fromisoformat(line.pop("time")).utcoffset() is not None
    assert done == {"event": "task", **MADE}
    assert quarantined == {"event": "quarantined", **LOST}


BESIDE_A_BAR = """
import sys
from dfkd.utils import logs
from dfkd.utils.progress import bar
with logs.json_log("synthesize", sys.argv[1]), bar("vanilla images", 9, "img") as shown:
    shown.set_postfix_str("1 failed", refresh=False)
    for number in range(3):
        logs.log_event("quarantined", run="0" * 16, task=f"0000-0000{number}", images=3,
                       reason="no luck")
        shown.update(3)
"""


def on_a_terminal(root: str, temporary: Path) -> str:
    """What a program with a bar writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", BESIDE_A_BAR, root],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    os.close(theirs)
    text = b""
    while chunk := _read(ours):
        text += chunk
    os.close(ours)
    assert process.wait() == 0
    return text.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux says so when the last writer is gone
        return b""


def screen(text: str) -> list[str]:
    """The lines that a terminal shows in the end, as long as they do not wrap."""
    lines = [""]
    column = 0
    for character in text:
        if character == "\r":
            column = 0
        elif character == "\n":
            lines.append("")
        else:
            line = lines[-1].ljust(column)
            lines[-1] = line[:column] + character + line[column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_a_terminal_shows_the_bar_alone_and_where_the_lines_are(tmp_path: Path) -> None:
    text = on_a_terminal(str(tmp_path), tmp_path)
    assert "{" not in text
    told, bar, rest = screen(text)
    assert rest == ""
    assert bar.startswith("vanilla images: 100%|")
    assert "9/9" in bar
    assert "1 failed" in bar
    assert len(bar) < 100
    (file,) = (tmp_path / logs.FOLDER).iterdir()
    assert told == f"a line of JSON for each task: {file}"
    assert re.fullmatch(r"\d{8}T\d{6}Z-synthesize\.jsonl", file.name)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["task"] for line in lines] == ["0000-00000", "0000-00001", "0000-00002"]
    assert {line["event"] for line in lines} == {"quarantined"}


@pytest.mark.parametrize("root", ["s3://bucket/run", ""])
def test_beside_a_bucket_the_lines_are_in_a_temporary_folder(tmp_path: Path, root: str) -> None:
    text = on_a_terminal(root, tmp_path)
    (file,) = tmp_path.iterdir()
    assert screen(text)[0] == f"a line of JSON for each task: {file}"
    assert len(file.read_text().splitlines()) == 3


def test_a_run_of_a_stranger_leads_no_lines_elsewhere(tmp_path: Path) -> None:
    private, root = tmp_path / "private", tmp_path / "run"
    private.mkdir()
    root.mkdir()
    (root / logs.FOLDER).symlink_to(private)
    with logs._open_new("synthesize", str(root)) as stream:
        path = Path(stream.name)
    assert private not in path.resolve().parents
    path.unlink()


def test_a_file_that_is_there_already_gets_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that a stranger has planted under the name of the next log, or another job's file."""
    frozen = Mock(now=lambda zone: datetime(2026, 1, 2, 3, 4, 5, tzinfo=zone))
    monkeypatch.setattr(logs, "datetime", frozen)
    private, folder = tmp_path / "private", tmp_path / "run" / logs.FOLDER
    folder.mkdir(parents=True)
    (folder / "20260102T030405Z-clean.jsonl").symlink_to(private)
    with logs._open_new("clean", str(tmp_path / "run")) as stream:
        assert folder not in Path(stream.name).parents
    assert not private.exists()
    Path(stream.name).unlink()


def test_the_newest_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / logs.FOLDER
    folder.mkdir()
    names = [f"202001{day:02}T000000Z-synthesize.jsonl" for day in range(1, 31)]
    for name in [*names, "0.jsonl", "other.txt"]:
        (folder / name).write_text("")
    on_a_terminal(str(tmp_path), tmp_path)
    foreign, *left, new, other = sorted(path.name for path in folder.iterdir())
    assert left == names[-logs.MAX_FILES + 1 :]
    assert (foreign, new[:3], other) == ("0.jsonl", "202", "other.txt")
    assert new not in names


def test_a_job_without_tasks_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with logs.json_log("evaluate", str(tmp_path)):
            pass
    os.close(ours)
    assert list(tmp_path.iterdir()) == []


def test_after_a_job_the_logger_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs.LOGGER, "propagate", True)
    before = (list(logs.LOGGER.handlers), logs.LOGGER.level)
    inside: list[tuple[bool, int]] = []

    def fail() -> None:
        inside.append((logs.LOGGER.propagate, len(logs.LOGGER.handlers)))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), logs.json_log("evaluate", ""):
        fail()
    assert inside == [(False, len(before[0]) + 1)]
    assert (logs.LOGGER.handlers, logs.LOGGER.level) == before
    assert logs.LOGGER.propagate
