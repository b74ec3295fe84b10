import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dfkd.config.manifest import Manifest
from dfkd.dataset.published import current
from dfkd.errors import CorruptionError, ManifestError
from dfkd.report import facts as facts_module
from dfkd.report import page
from dfkd.report.facts import Facts, collect, note_origin
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from tests.helpers.finished_run import CLASSES, DOMAINS, METHODS, SEEDS
from tests.helpers.tiny_version import publish


@pytest.fixture
def copy(run: Manifest, tmp_path: Path) -> Storage:
    """The run's folder, to be changed."""
    shutil.copytree(run.storage.root, tmp_path / "copy")
    return open_storage(str(tmp_path / "copy"))


def copy_student(storage: Storage, start: str, other: str) -> tuple[str, str]:
    """Copy the student whose name begins so under another name; both names."""
    (name,) = (n for n in storage.folders("students/") if n.startswith(start))
    copied = name.replace(start, other)
    for key in list(storage.list(f"students/{name}/")):
        storage.put(key.replace(name, copied), storage.get(key))
    return name, copied


def test_a_folder_is_enough(facts: Facts) -> None:
    assert facts.classes == CLASSES
    assert list(facts.images) == list(DOMAINS)
    assert [model.label for model in facts.scored] == ["teacher", *METHODS]
    assert [made.method for made in facts.method_images] == list(METHODS)
    assert {(t.method, t.seed) for t in facts.trained_students} == {
        (m, s) for m in METHODS for s in SEEDS
    }
    assert facts.best is not None
    assert facts.best.label == "contrastive"
    assert facts.origin is None


def test_confusions_are_summed_over_domains_and_seeds(facts: Facts) -> None:
    teacher, vanilla, _ = (model.confusion for model in facts.scored)
    np.testing.assert_array_equal(teacher.diagonal(), [16 * 3] * 3)
    np.testing.assert_array_equal(vanilla.diagonal(), [(8 + 9) * 3] * 3)
    assert vanilla.sum() == 20 * 3 * 3 * 2


def test_what_a_student_learned_is_read_from_its_card(copy: Storage, facts: Facts) -> None:
    for name in copy.folders("students/"):
        card = json.loads(copy.get(f"students/{name}/student.json"))
        card |= {"target": "embedding", "embedding_dim": 8}
        copy.put(f"students/{name}/student.json", json.dumps(card).encode())
    assert (facts.learned, collect(copy).learned) == ("distances", "embedding")


def test_a_student_of_other_settings_is_left_out(copy: Storage) -> None:
    name, _ = copy_student(copy, "vanilla-s0-", "vanilla-s0-ffff")
    names = {(t.method, t.seed): t.name for t in collect(copy).trained_students}
    assert names["vanilla", 0] == name


def test_a_student_of_seed_10_is_not_one_of_seed_1(copy: Storage) -> None:
    name, other = copy_student(copy, "vanilla-s1-", "vanilla-s10-")
    results = json.loads(copy.get("results.json"))
    results["students"].append(other)
    copy.put("results.json", json.dumps(results).encode())
    names = [t.name for t in collect(copy).trained_students if (t.method, t.seed) == ("vanilla", 1)]
    assert names == [name]


def test_the_commit_stays_that_of_the_first_call_for_a_manifest(
    copy: Storage, run: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = []
    for commit, manifest in (
        ("first", run),
        ("second", run),
        ("third", dataclasses.replace(run, salt=7)),
    ):
        monkeypatch.setattr(facts_module, "commit", lambda commit=commit: commit)
        note_origin(copy, manifest, "command")
        commits.append(json.loads(copy.get("report.json"))["commit"])
    assert commits == ["first", "first", "third"]


def test_the_data_are_those_that_the_scored_students_learned_from(
    copy: Storage, facts: Facts, run: Manifest
) -> None:
    """And not what has become current since."""
    publish(dataclasses.replace(run.with_values(storage={"root": copy.location()}), salt=7))
    newest = current(copy.child("data/vanilla"))
    assert newest is not None
    shown = collect(copy).method_images[0].version
    assert shown.id == facts.method_images[0].version.id != newest.id


@pytest.mark.parametrize(("limit", "each"), [(12, 2), (1, 1)])
def test_all_classes_and_methods_share_the_pictures_of_a_page(
    run: Manifest, monkeypatch: pytest.MonkeyPatch, limit: int, each: int
) -> None:
    monkeypatch.setattr(facts_module, "MAX_PICTURES", limit)
    shown = [
        images.gallery.strips for images in collect(open_storage(run.storage.root)).method_images
    ]
    assert [len(strip) for strips in shown for strip in strips.values()] == [each] * 6


def test_old_scores_are_not_shown_beside_new_images(copy: Storage, run: Manifest) -> None:
    for key in list(copy.list("students/")):
        copy.delete(key)
    publish(dataclasses.replace(run.with_values(storage={"root": copy.location()}), salt=7))
    facts = collect(copy)
    assert [model.label for model in facts.scored] == ["teacher", *METHODS]
    assert facts.method_images == []
    assert "images synthesised" not in Path(page.write_stored(copy)).read_text()


def test_a_manifest_of_other_students_than_the_scored_ones_is_refused(run: Manifest) -> None:
    other = run.with_values(distillation={"epochs": run.distillation.epochs + 1})
    with pytest.raises(ManifestError, match=r"results\.json scores.*run dfkd evaluate"):
        page.write(other, "command")
    assert not (Path(run.storage.root) / "report.json").exists()


@pytest.mark.parametrize(
    "key",
    [
        "report.json",
        "results.json",
        "data/vanilla/versions/{id}/index/*.parquet",
        "data/vanilla/versions/{id}/index/*.json",
        "data/vanilla/versions/{id}/prompts.json",
        "data/vanilla/versions/{id}/shards/0000-00000.tar",
        "students/{student}/student.json",
    ],
)
def test_a_damaged_object_is_named(copy: Storage, run: Manifest, key: str) -> None:
    note_origin(copy, run, "command")
    (version,) = copy.folders("data/vanilla/versions/")
    key = key.replace("{id}", version).replace("{student}", copy.folders("students/")[0])
    if "*" in key:
        folder, suffix = key.split("*")
        (key,) = (each for each in copy.list(folder) if each.endswith(suffix))
    copy.put(key, copy.get(key)[: -1 if key.endswith(".tar") else 60])
    with pytest.raises(CorruptionError, match=Path(key).name):
        collect(copy)


def test_of_two_runs_the_one_with_an_edited_figure_is_named(copy: Storage) -> None:
    results = json.loads(copy.get("results.json"))
    results["rows"][0]["images"] += 1
    copy.put("results.json", json.dumps(results).encode())
    place = re.escape(copy.location("results.json"))
    with pytest.raises(CorruptionError, match=rf"^{place}: results rows\.0\.images: must follow"):
        collect(copy)


def test_a_folder_without_results_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"results\.json"):
        collect(open_storage(str(tmp_path)))
