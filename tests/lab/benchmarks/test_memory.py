import os
from pathlib import Path

import pytest

from dfkd.lab.benchmarks import memory
from dfkd.lab.benchmarks.memory import Memory, Watch, watched


def test_descendants_are_found_whatever_a_process_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux cuts a name after 15 bytes: here inside a character."""
    stats = {7: b"7 (sh) S 1", 8: b"8 (caf\xc3) S 7", 9: b"9 (a) b)) R 8", 5: b"5 (x) S 1"}
    for number, stat in stats.items():
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_bytes(stat)
    (tmp_path / "6").mkdir()  # has ended
    (tmp_path / "meminfo").touch()
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert memory.descendants(7) == {8, 9}


def test_a_watch_measures_a_process_and_its_descendants_at_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux tells kilobytes. The child's child has no rollup, as one that has just ended."""
    own = os.getpid()
    for number, parent in ((own, 1), (own + 1, own), (own + 2, own + 1), (own + 3, 1)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_text(f"{number} (x) S {parent}")
        if number != own + 2:
            rollup = f"Rss: 900 kB\nPss: {10 + number - own} kB\nPss_Anon: 7 kB\n"
            (tmp_path / str(number) / "smaps_rollup").write_text(rollup)
    monkeypatch.setattr(memory, "PROC", tmp_path)
    with watched(interval=3600) as watch:
        assert len(watch.samples) == 1
    first, last = watch.samples
    assert (first.driver, first.tree) == (last.driver, last.tree) == (10 << 10, (10 + 11) << 10)
    assert 0 <= first.seconds <= last.seconds


def test_a_summary_has_the_maxima_and_the_median_of_each_tenth() -> None:
    seconds = (0.0, 0.1, 0.9, 1.0, 5.5, 9.9, 10.0)
    driver = (3, 1, 2, 9, 4, 5, 6)
    watch = Watch([Memory(*each, 20 - each[1]) for each in zip(seconds, driver, strict=True)])
    assert watch.summary() == {
        "driver_most": 9,
        "tree_most": 19,
        "driver_by_tenth": [2, 9, 4, 6],
        "samples": 7,
    }
    assert Watch([Memory(0.0, 7, 8)]).summary()["driver_by_tenth"] == [7]
