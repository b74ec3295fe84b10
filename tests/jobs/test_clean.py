"""The job as a user meets it: shows what it would do, does exactly that, and refuses nonsense."""

import json
import shutil
from pathlib import Path

import pytest

from dfkd.errors import Exit
from dfkd.storage import lease
from dfkd.storage.local import open_storage
from dfkd.utils.strict_json import canonical
from tests.helpers import jobs
from tests.helpers.jobs import contents
from tests.helpers.partial_version import TASKS, fill, regenerated
from tests.helpers.published import published
from tests.helpers.swept_run import age
from tests.helpers.tiny_version import write_manifest

clean = jobs.load("clean")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run with two versions, of which the second carries three shards of the first over."""
    write_manifest(tmp_path)
    regenerated(tmp_path / "run", fill(tmp_path / "run"), 1, TASKS[:1])
    return tmp_path / "run"


def test_a_dry_run_says_exactly_what_the_next_call_removes(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = str(root.parent / "manifest.yaml")
    before = contents(root)
    assert clean.main([manifest, "--dry-run", "--keep=1"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["objects"] == 0  # all of it is younger than a day
    assert clean.main([manifest, "--dry-run", "--keep=2", "--grace=0"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["remove"] == []
    age(root, 2 * clean.GRACE)
    shutil.rmtree(root / ".partial")
    assert clean.main([manifest, "--dry-run", "--keep=1"]) == Exit.DONE
    assert not (root / ".partial").exists()  # nothing is written
    planned = json.loads(capsys.readouterr().out)
    assert contents(root) == before
    objects = {
        key: size for removal in planned["remove"] for key, size in removal["objects"].items()
    }
    assert planned["objects"] == len(objects) > 5
    assert objects == {key: len(before[key]) for key in objects}

    assert clean.main([manifest, "--keep=1"]) == Exit.DONE
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"wrote {root / 'clean.json'}"
    assert f"removed {planned['objects']} objects, {planned['bytes']} bytes" in lines
    assert before.keys() - contents(root).keys() == objects.keys()
    removed = {key: planned[key] for key in ("objects", "bytes")}
    written = json.loads((root / "clean.json").read_text())
    assert written == planned | {"schema": 1, "removed": removed}
    published(root)


@pytest.mark.parametrize("holder", ["\x1b[2Jhost:1", "host:1$(id)", "host"])
def test_a_holder_that_no_job_has_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], holder: str
) -> None:
    """It is shown on a terminal, and behind a command to paste."""
    record = {"holder": holder, "since": 0.0, "expires": 9e9, "released": False, "versions": []}
    open_storage(str(root)).put(f"leases/readers/{'0' * 32}.json", canonical(record))
    assert clean.main([str(root.parent / "manifest.yaml"), "--keep=1"]) == Exit.FAILED
    told = capsys.readouterr().err
    assert f"leases/readers/{'0' * 32}.json" in told.splitlines()[-1]
    assert "\x1b" not in told


def test_two_sweeps_do_not_run_at_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lease.holding(open_storage(str(root)), "clean"):
        assert clean.main([str(root.parent / "manifest.yaml")]) == Exit.RETRY
    assert "lease clean: is held by" in capsys.readouterr().err
