"""How progress looks in a log: whole lines, few of them. `test_logs` has it on a terminal."""

import time

import pytest

from dfkd.utils.progress import LineBar, bar


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
        shown.set_postfix_str("2 failed, 1 quarantined", refresh=False)
        shown.update(2)
    printed = capfd.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == ""
    assert "3/3" in line
    assert line.endswith("2 failed, 1 quarantined]")
    assert line.isascii()


def test_a_line_is_written_once_where_print_writes_it_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As under Ray Train, whose `print` in a rank also logs what it prints on stderr."""
    monkeypatch.setattr("builtins.print", lambda *args, **_: [print(*args) for _ in range(2)])
    with LineBar("student", 2, "img") as shown:
        shown.update(2)
    assert capsys.readouterr().err.count("student") == 1


def test_the_rate_counts_only_what_was_done_here_and_the_end_shows_the_last_note(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of 100 images 60 were there before; 20 more take ten seconds each, so 20 take 200 s."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def fail(shown: LineBar) -> None:
        nonlocal now
        now = 200.0
        shown.update(20)
        shown.set_postfix_str("1 failed", refresh=False)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), bar("mix images", 100, "img", done=60) as shown:
        fail(shown)
    first, last = capfd.readouterr().err.splitlines()
    assert "80/100 [03:20<03:20, 10.00s/img" in first
    assert last.endswith("1 failed]")
