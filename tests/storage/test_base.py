import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from dfkd.errors import ManifestError
from dfkd.storage.base import YOUNG_SECONDS, require_root_space, scratch_folder


def test_too_little_space_is_refused_before_work(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_root_space(str(tmp_path / "not/yet/there"), free // 2)
    with pytest.raises(ManifestError, match=r"storage\.root: needs .* bytes of free disk"):
        require_root_space(str(tmp_path / "not/yet/there"), free * 2)
    assert not (tmp_path / "not").exists()


def test_folders_of_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old = time.time() - 2 * YOUNG_SECONDS
    script = (
        "import time\nfrom dfkd.storage.base import scratch_folder\n"
        "with scratch_folder('dfkd-test-') as folder:\n"
        "    (folder / 'file').write_bytes(b'x')\n"
        "    print(folder, flush=True)\n    time.sleep(600)\n"
    )
    command, environment = [sys.executable, "-c", script], os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as worker:
        assert worker.stdout is not None
        folder = Path(worker.stdout.readline().strip())
        os.utime(folder, (old, old))
        with scratch_folder("dfkd-test-"):
            assert folder.exists()  # it is alive
        worker.kill()
    with scratch_folder("dfkd-test-") as own:
        assert list(tmp_path.iterdir()) == [own]
