"""How progress looks: in a log whole lines, few of them; on a terminal one line that is redrawn."""

import fcntl
import os
import pty
import struct
import sys
import termios
import time

import pytest

from dfkd.utils.progress import LineBar, ScreenBar, bar


def work(monkeypatch: pytest.MonkeyPatch, count: int, seconds: float) -> None:
    """Show `count` images of so many seconds each, by a clock that needs no waiting."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with bar("mix images", count, "img") as shown:
        assert isinstance(shown, LineBar)
        for _ in range(count):
            now += seconds
            shown.update()


def test_a_log_gets_a_whole_line_every_ten_seconds_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    work(monkeypatch, 60, 0.5)
    text = capfd.readouterr().err
    assert "\r" not in text
    assert "\x1b" not in text
    first, second, last = text.splitlines()
    assert first.startswith("mix images:  35%|")
    assert "21/60 [00:10<00:1" in first
    assert "42/60" in second
    assert "60/60" in last
    assert all(len(line) <= 80 for line in (first, second, last))


def test_a_line_that_shows_the_end_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    work(monkeypatch, 2, 6.0)
    (line,) = capfd.readouterr().err.splitlines()
    assert "2/2" in line


def test_a_log_of_short_work_is_one_line_with_its_failures(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with bar("mix prompts", 3, "part", done=1) as shown:
        shown.note("2 failed, 1 quarantined")
        shown.update(2)
    printed = capfd.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == ""
    assert "3/3" in line
    assert line.endswith("2 failed, 1 quarantined]")
    assert line.isascii()


def test_a_terminal_shows_one_line_that_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 70, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with bar("mix images", 4, "img") as shown:
            assert isinstance(shown, ScreenBar)
            shown.update(1)
            shown.note("1 failed")
            shown.update(3)
        text = ""
        while "\n" not in text:
            text += os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert text.count("\n") == 1
    *_, last = text.strip().split("\r")
    assert len(last) < 70
    assert last.startswith("mix images: 100%|")
    assert "4/4" in last
    assert "1 failed" in last
