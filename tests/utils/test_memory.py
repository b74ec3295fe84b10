from pathlib import Path

import pytest

from dfkd.utils import memory


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
