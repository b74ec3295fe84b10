import json
from pathlib import Path

import pytest

from dfkd.config.manifest import Manifest
from dfkd.dataset import publication
from dfkd.dataset.verification import verify
from dfkd.errors import Exit
from tests.helpers import jobs, tiny_version
from tests.helpers.partial_version import fill

job = jobs.load("verify")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tiny_version.write_manifest(tmp_path)
    tiny_version.publish(Manifest.read(path))
    return path


def test_a_whole_run(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([str(manifest)]) == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    report = manifest.parent / "run" / "verify.json"
    assert lines[-1] == f"wrote {report}"
    assert "6 shards, 24 samples, 0 problems" in lines[0]
    (version,) = json.loads(report.read_text())["versions"]
    assert version["method"] == "vanilla"
    assert version["problems"] == []


def test_a_damaged_shard_is_named(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`test_verify_names_each_problem` has the other kinds of damage."""
    next(manifest.parent.glob("run/data/vanilla/versions/*/shards/0001-00000.tar")).unlink()
    assert job.main([str(manifest)]) == Exit.FAILED
    printed = capsys.readouterr()
    problems = [line for line in printed.out.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 1
    assert "shards/0001-00000.tar" in problems[0]
    assert "restore" in problems[0]
    assert "wrote" not in printed.out
    assert len([line for line in printed.err.splitlines() if line.startswith("error: ")]) == 1
    assert "1 problems" in printed.err
    assert "follow the remedy of each" in printed.err
    report = json.loads((manifest.parent / "run" / "verify.json").read_text())
    assert report["versions"][0]["problems"] == [problems[0].removeprefix("problem: ")]


@pytest.mark.parametrize("name", ["index/*.parquet", "index/*.json", "README.md"])
def test_what_follows_from_the_receipts_is_restored(
    manifest: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (file,) = manifest.parent.glob(f"run/data/vanilla/versions/*/{name}")
    before = file.read_bytes()
    file.write_bytes(before[:-1] + b"?")
    assert job.main([str(manifest)]) == Exit.DONE
    assert "restored " in (printed := capsys.readouterr().out)
    assert file.name in printed
    assert file.read_bytes() == before


def test_a_card_that_this_dfkd_words_otherwise_is_not_restored(
    manifest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (card,) = manifest.parent.glob("run/data/vanilla/versions/*/README.md")
    card.write_text("damaged")
    monkeypatch.setattr(publication, "TERMS", "other terms")
    assert job.main([str(manifest)]) == Exit.FAILED
    assert "this dfkd writes it otherwise" in capsys.readouterr().out
    assert card.read_text() == "damaged"


def test_a_method_without_a_version_is_named(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = job.main([str(manifest), "--set", "prompts.method=[vanilla, mix]"])
    assert code == Exit.FAILED
    assert "data/mix: nothing published; run dfkd synthesize" in capsys.readouterr().out


def test_a_damaged_manifest_does_not_hide_the_other_methods(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_version.publish(Manifest.read(manifest), "mix")
    next((manifest.parent / "run").glob("data/mix/versions/*/version.json")).write_bytes(b"{")
    assert job.main([str(manifest), "--set", "prompts.method=[mix, vanilla]"]) == Exit.FAILED
    printed = capsys.readouterr().out
    assert "vanilla: version" in printed
    assert "no readable JSON" in printed


def test_dry_run_reads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_version.write_manifest(tmp_path)
    (tmp_path / "run").mkdir()
    assert job.main([str(path), "--dry-run"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["methods"] == ["vanilla"]
    assert not list((tmp_path / "run").iterdir())


def test_verify_names_each_problem(tmp_path: Path) -> None:
    published = fill(tmp_path)
    storage = published.storage
    flipped = bytearray(storage.get("shards/0000-00000.tar"))
    flipped[-5000] ^= 1
    storage.put("shards/0000-00000.tar", bytes(flipped))
    storage.put("shards/0000-00001.tar", storage.get("shards/0000-00001.tar")[:1024])
    storage.delete("shards/0001-00000.tar")
    storage.delete("receipts/0001-00001.json.gz")
    reasons = [
        "0000-00000.tar: is not what its receipt says",
        "0000-00001.tar: is not what its receipt says",
        "0001-00000.tar: missing",
        "receipts/0001-00001.json.gz: no such",
    ]
    for problem, reason in zip(verify(published), reasons, strict=True):
        assert reason in problem
        assert "restore" in problem


def test_changed_prompts_are_found(tmp_path: Path) -> None:
    published = fill(tmp_path)
    storage = published.storage
    part, sealed = storage.get("prompts/00001.parquet"), storage.get("prompts.json")
    storage.put("prompts/00001.parquet", part[:-1] + b"x")
    assert ["prompts/00001.parquet: is not" in line for line in verify(published)] == [True]
    storage.put("prompts/00001.parquet", part)
    storage.put("prompts.json", sealed.replace(b"parts", b"ports"))
    assert ["prompts.json: is not" in line for line in verify(published)] == [True]
    storage.delete("prompts.json")
    assert ["synthesise again" in line for line in verify(published)] == [True]
    storage.put("prompts.json", sealed)
    assert verify(published) == []
