"""The command in this process, on a run that has its candidates and nothing else."""

import json
from pathlib import Path

import pytest

from dfkd.storage.local import open_storage
from dfkd.utils.strict_json import canonical
from tests.helpers import jobs
from tests.helpers.candidates import FOUR, put_folders, tree
from tests.helpers.finished_run import finished


@pytest.fixture
def run(tmp_path: Path) -> Path:
    content = tree(*FOUR)
    open_storage(str(tmp_path)).put("candidates.json", canonical(content))
    put_folders(tmp_path, content)
    return tmp_path


def test_what_satisfies_the_limits_is_copied(run: Path) -> None:
    found = jobs.run_here("ship", run, "--max-ms", "3", "--at-least", "60")
    assert found.returncode == 0, found.stderr
    assert "shipped teacher text-only int8 (80.0 %, 1.9 ms, 5.6 MB)" in found.stdout
    assert found.stdout.endswith(f"wrote {run / 'shipped'}\n")
    lines = {line.split("  ")[0]: line for line in found.stdout.splitlines()}
    assert "--max-ms by 0.2 ms" in lines["teacher"]
    assert "--at-least by 18.0 points" in lines["timm:<b>vit</b> int8"]
    assert " by " not in lines["teacher int8"]
    shipped = jobs.contents(run / "shipped")
    assert {name: shipped[name] for name in shipped if name != "shipped.json"} == jobs.contents(
        run / "candidates" / "teacher-text-only"
    )
    facts = json.loads(shipped["shipped.json"])
    assert (facts["candidate"], facts["file"]) == ("teacher text-only", "model.int8.onnx")
    assert facts["limits"] == {"max_ms": 3.0, "max_mb": None, "at_least": 60.0}


def test_another_choice_replaces_the_folder(run: Path) -> None:
    (run / "candidates" / "timm-test_resnet" / "extra.txt").write_text("own")
    assert jobs.run_here("ship", run, "--max-mb", "1").returncode == 0
    assert (run / "shipped" / "extra.txt").exists()
    assert jobs.run_here("ship", run).returncode == 0
    shipped = jobs.contents(run / "shipped")
    assert set(shipped) == {"labels.json", "model.onnx", "model.int8.onnx", "shipped.json"}
    assert shipped["labels.json"] == b"teacher text-only"


def test_limits_that_nothing_satisfies_are_told_with_what_they_exclude(run: Path) -> None:
    found = jobs.run_here("ship", run, "--max-ms", "1.8", "--at-least", "70")
    assert found.returncode == 3
    assert "--max-ms 1.8 excludes 7 of 8 files, the nearest by 0.1 ms: " in found.stdout
    assert "--at-least 70 excludes 4 of 8 files, the nearest by 8.0 points: timm" in found.stdout
    assert "the nearest is teacher text-only int8 (" in jobs.last_error(found)
    assert not (run / "shipped").exists()


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_candidates_of_other_students_than_the_manifest_s_are_not_shipped(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Of the folder's own candidates a person may ship what she likes."""
    root = tmp_path / "run"
    finished(tmp_path)
    put_folders(root, tree(*FOUR))
    path = tmp_path / "manifest.yaml"
    assert jobs.run_here("ship", path, *options).returncode == 0
    before = jobs.contents(root)
    for setting in ("distillation.epochs=9", "distillation.student=[timm:test_resnet, resnet18]"):
        line = jobs.refusal("ship", path, "--set", setting, *options)
        assert line.startswith("distillation: must be as of the students in candidates.json")
    assert jobs.contents(root) == before
    assert jobs.run_here("ship", root, *options).returncode == 0


def test_a_dry_run_says_what_would_be_shipped(run: Path) -> None:
    assert jobs.plan("ship", run, "--max-mb", "1") == {
        "candidate": "timm:test_resnet", "precision": "int8",
    }  # fmt: skip
    assert not (run / "shipped").exists()


@pytest.mark.parametrize("file", [None, b"shorter"])
def test_a_candidate_that_is_not_what_was_scored_is_not_shipped(
    run: Path, file: bytes | None
) -> None:
    model = run / "candidates" / "teacher-text-only" / "model.onnx"
    if file is None:
        model.unlink()
    else:
        model.write_bytes(file)
    found = jobs.run_here("ship", run)
    assert found.returncode == 1
    assert "must be the file of 21500000 bytes that was scored" in jobs.last_error(found)
    assert not (run / "shipped").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-ms", "nan"),
        ("--max-ms", "-1"),
        ("--max-mb", "inf"),
        ("--max-mb", "0"),
        ("--at-least", "101"),
        ("--at-least", "much"),
    ],
)
def test_absurd_limits_are_refused(
    run: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        jobs.load("ship").main([str(run), option, value])
    assert stop.value.code == 2
    assert f"must be a number more than 0 and at most 1{'00' if 'least' in option else 'e+06'}" in (
        capsys.readouterr().err
    )


def test_a_folder_without_candidates_is_one_line(tmp_path: Path) -> None:
    for words in ([], ["--dry-run"]):
        assert "run dfkd pipeline first" in jobs.refusal("ship", tmp_path, *words)
