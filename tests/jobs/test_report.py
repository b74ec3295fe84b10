"""The job in this process, on a run that has its results and nothing else."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dfkd.evaluation.data import Domains, Item
from dfkd.evaluation.results import results, row, write_results
from dfkd.storage.local import open_storage
from dfkd.utils.strict_json import canonical
from tests.helpers import jobs, small_manifest
from tests.helpers.candidates import FOUR, tree

CLASSES = ["cat", "dog"]


def report(source: Path | str, *arguments: Path | str) -> tuple[int, str, str]:
    """Run the job in this process; its exit code, stdout and stderr."""
    found = jobs.run_here("report", source, *map(str, arguments))
    return found.returncode, found.stdout, found.stderr


def write_run(folder: Path, right: int) -> Path:
    """A finished run of which the teacher has `right` of 10 images a class right; its manifest."""
    counts = np.array([[right, 10 - right], [10 - right, right]])
    rows = [row("teacher", "zero-shot", 0, "photo", CLASSES, counts)]
    data = Domains("bundled", tuple(CLASSES), (Item("photo", 0, "a.png"),), ())
    write_results(open_storage(str(folder / "run")), results(data, rows, [], {"teacher": 1000}, []))
    return small_manifest.write(
        folder,
        classes=CLASSES,
        storage={"root": str(folder / "run")},
        evaluation={"models": "teacher"},
    )


def test_a_manifest_gives_a_page_that_names_the_run_and_its_command(tmp_path: Path) -> None:
    manifest = write_run(tmp_path / "first", 9)
    code, out, err = report(manifest, "--set", "seed=3")
    assert code == 0, err
    place = tmp_path / "first" / "run" / "report.html"
    assert out == f"wrote {place}\n"
    html = place.read_text()
    assert f"dfkd pipeline {manifest} --set seed=3" in html
    assert "90.0\u00a0%" in html
    before = html
    code, _, err = report(tmp_path / "first" / "run")
    assert code == 0, err
    assert place.read_text() == before


def test_two_runs_are_compared_whether_manifests_or_folders(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", 9)
    write_run(tmp_path / "second", 7)
    code, out, err = report(first, tmp_path / "second" / "run")
    assert code == 0, err
    place = tmp_path / "first" / "run" / "comparison.html"
    assert out.splitlines()[-1] == f"wrote {place}"
    assert re.search(r">-20\.0<", place.read_text())
    assert not (tmp_path / "second" / "run" / "comparison.html").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    manifest = write_run(tmp_path / "first", 9)
    write_run(tmp_path / "second", 7)
    code, out, _ = report(manifest, tmp_path / "second" / "run", "--dry-run")
    assert code == 0
    assert json.loads(out)["page"] == "comparison.html"
    assert [p.name for p in (tmp_path / "first" / "run").iterdir() if p.is_file()] == [
        "results.json"
    ]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_folder_without_a_run_is_one_line(tmp_path: Path, more: list[str]) -> None:
    manifest = write_run(tmp_path / "first", 9)
    (tmp_path / "empty").mkdir()
    for words in ([tmp_path / "empty"], [manifest, str(tmp_path / "empty")]):
        assert jobs.refusal("report", *words, *more).startswith("storage.root: ")


def test_overrides_belong_to_a_manifest(tmp_path: Path) -> None:
    write_run(tmp_path / "first", 9)
    code, _, err = report(tmp_path / "first" / "run", "--set", "seed=1")
    assert code == 2
    assert err.startswith("error: --set: ")


def test_a_run_that_has_candidates_alone_has_a_page(tmp_path: Path) -> None:
    content = canonical(tree(*FOUR, measure="agreement"))
    open_storage(str(tmp_path / "run")).put("candidates.json", content)
    code, out, err = report(tmp_path / "run")
    assert code == 0, err
    assert out == f"wrote {tmp_path / 'run' / 'report.html'}\n"
