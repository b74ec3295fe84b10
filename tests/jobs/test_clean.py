"""The job as a user meets it: shows what it would do, does exactly that, and refuses nonsense."""

import json
import shutil
from dataclasses import asdict
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


def test_no_holder_of_a_lease_moves_the_cursor(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = open_storage(str(root))
    kept = f"vanilla/{storage.folders('data/vanilla/versions/')[0]}"
    record = lease.LeaseRecord(
        holder="\x1b[2Jhost:1", since=0.0, expires=9e9, released=False, versions=(kept,)
    )
    storage.put("leases/readers/x.json", canonical(asdict(record)))
    assert clean.main([str(root.parent / "manifest.yaml"), "--keep=1"]) == Exit.DONE
    assert rf"keep {kept}: held by \x1b[2Jhost:1 (leases/" in capsys.readouterr().out


def test_two_sweeps_do_not_run_at_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lease.holding(open_storage(str(root)), "clean"):
        assert clean.main([str(root.parent / "manifest.yaml")]) == Exit.RETRY
    assert "lease clean: is held by" in capsys.readouterr().err
