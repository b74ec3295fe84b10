"""The page that compares two versions: there whenever a decision about them is, else not named."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from dfkd.cluster import students
from dfkd.cluster.students import FinishedStudent
from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import blocks, tasks
from dfkd.dataset.published import PublishedVersion, advance, current_id
from dfkd.distillation.student_names import student_name
from dfkd.distillation.student_store import StudentLocation
from dfkd.errors import BudgetError, DfkdError, GateError, LeaseError, ManifestError, PartialError
from dfkd.export import candidates, choice
from dfkd.models.generators.settings import Vqgan
from dfkd.models.student import CARD
from dfkd.operations import attempts, garbage_collection, regeneration, sweep
from dfkd.operations.attempts import Attempt
from dfkd.report import page
from dfkd.storage import layout, lease
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from dfkd.utils.strict_json import canonical
from tests.helpers.candidates import candidate, parsed, put_folders, tree
from tests.helpers.tiny_models import RESNET, model_config, write_teacher
from tests.helpers.tiny_version import fill, publish, write_manifest

BUILD, SCORE = regeneration._Run.build, regeneration._Run.score
PAGE = "regenerations/{:08d}/comparison.html"


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """Of a run without models whose gate refuses every challenger, which has too few images."""

    def build(run: regeneration._Run, *_: bool) -> PublishedVersion:
        made = fill(run.manifest, tasks(run.manifest))
        return made.publish(blocks(run.manifest), {}, make_current=False)

    def score(run: regeneration._Run, version: PublishedVersion, name: str) -> float:
        run.attempt.storage.put(f"{name}/{layout.RESULTS}", b"{}")
        return 0.5

    monkeypatch.setattr(regeneration, "_check", lambda manifest: None)
    monkeypatch.setattr(regeneration, "connected", contextlib.nullcontext)
    monkeypatch.setattr(regeneration, "identify", lambda manifest, base: identity(manifest, {}))
    monkeypatch.setattr(regeneration._Run, "build", build)
    monkeypatch.setattr(regeneration._Run, "score", score)
    monkeypatch.setattr(
        regeneration._Run, "facts", lambda run, version, name: f"{name} {version.id}"
    )
    monkeypatch.setattr("dfkd.report.compare.render", lambda old, new, rules: f"{old} | {new}")
    monkeypatch.setattr(attempts, "MINIMUM_PER_CLASS", 9)
    return Manifest.read(write_manifest(tmp_path))


def scored_by(
    monkeypatch: pytest.MonkeyPatch, lost: list[str], lost_of_the_file: list[str]
) -> tuple[list[StudentLocation], Mock]:
    """The real `score` of students that are not trained; returns those, and what scores the file.

    Args:
        lost: the images that could not be read for `results.json`.
        lost_of_the_file: those that could not be read for the shipped file.
    """
    trained: list[StudentLocation] = []

    def distil(manifest: Manifest, student: StudentLocation) -> FinishedStudent:
        trained.append(student)
        return FinishedStudent(student, reused=True)

    results = SimpleNamespace(results={"data": {"unreadable": lost}})
    files = {"float32": [0.9], "int8": [0.4, 0.6]}
    score = Mock(return_value=(files, lost_of_the_file))
    monkeypatch.setattr(regeneration, "evaluate", lambda *_: results)
    monkeypatch.setattr(regeneration, "note_origin", lambda *_: None)
    monkeypatch.setattr(regeneration._Run, "score", SCORE)
    monkeypatch.setattr(students, "distill_located", distil)
    monkeypatch.setattr(candidates, "score_student", score)
    return trained, score


LOST = "photo/dog/1.png: truncated"


@pytest.mark.parametrize("lost", [([LOST], []), ([], [LOST])])
def test_images_that_could_not_be_read_decide_nothing(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, lost: tuple[list[str], list[str]]
) -> None:
    """They may be readable a minute later, when the other version is scored."""
    scored_by(monkeypatch, *lost)
    publish(manifest)
    with pytest.raises(PartialError, match=r"1 images could not be read, the first is photo/dog"):
        regenerate(manifest)
    assert not open_storage(manifest.storage.root).exists("regenerations/00000001/decision.json")


@pytest.mark.parametrize(("shipped", "accuracy"), [(True, 0.5), (False, 0.9)])
def test_the_shipped_file_decides_and_every_student_is_trained(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, shipped: bool, accuracy: float
) -> None:
    trained, score = scored_by(monkeypatch, [], [])
    publish(manifest)
    manifest = manifest.with_values(distillation={"student": SEVERAL, "seeds": (0, 1)})
    if shipped:
        put_shipped(open_storage(manifest.storage.root))
    with pytest.raises(GateError):
        regenerate(manifest)
    file = f"{SEVERAL[1]} int8" if shipped else f"{SEVERAL[0]} float32"
    decision = Attempt(open_storage(manifest.storage.root), 1).decision
    assert decision is not None
    assert decision.rules[0].text.startswith(f"mean accuracy of {file}, ")
    assert (decision.accuracy, decision.current_accuracy) == (accuracy, accuracy)
    assert {call.args[1] for call in score.call_args_list} == {file.split()[0]}
    students = [(name, seed) for name in SEVERAL for seed in (0, 1)]
    assert [(each.architecture, each.seed) for each in trained] == 2 * students
    versions = [each.version.id for each in trained]
    assert versions == 4 * [decision.challenger] + 4 * [decision.current]
    assert [call.args[2] for call in score.call_args_list] == [versions[0], versions[-1]]


SEVERAL = ("timm:test_resnet", "timm:test_efficientnet")
CONTENT = tree(candidate(SEVERAL[1], ([0.6], 2.2, 0.4), ([0.5], 1.4, 0.2), images=24))


def put_shipped(root: Storage) -> None:
    """The int8 file of the second student is what is shipped."""
    root.put(layout.CANDIDATES, canonical(CONTENT))
    put_folders(Path(root.location()), CONTENT)
    (point,) = (each for each in choice.points(parsed(*CONTENT["candidates"])) if each.mb == 0.2)
    choice.ship(root, point, choice.Limits(max_mb=0.3))


def test_a_kill_while_the_file_is_copied_does_not_forget_which_it_is(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "MINIMUM_PER_CLASS", 1)
    monkeypatch.setattr(regeneration, "write_contact_sheet", lambda *_: None)
    monkeypatch.setattr(page, "write", lambda *_: "report.html")
    monkeypatch.setattr(candidates, "write_candidates", lambda *_: "candidates.json")
    publish(manifest)
    manifest = manifest.with_values(distillation={"student": SEVERAL})
    root = open_storage(manifest.storage.root)
    put_shipped(root)
    before = choice.read_shipped(root)
    with monkeypatch.context() as patch:
        patch.setattr(choice, "canonical", killed)  # after the copy, before shipped.json
        with pytest.raises(KeyboardInterrupt):
            regenerate(manifest)
    assert choice.read_shipped(root) is None
    regenerate(manifest)
    assert choice.read_shipped(root) == before


def regenerate(manifest: Manifest) -> None:
    regeneration.regenerate(manifest, "the command", abandon=False, accept_partial=False, threads=1)


def test_images_of_other_settings_are_not_carried_over(manifest: Manifest) -> None:
    first = publish(manifest)
    own = Vqgan(config="miniature", weights="miniature", steps=99)
    other = manifest.with_values(regeneration={"share": 0.5}, generator={"kinds": {"vqgan": own}})
    carried = (
        rf"^generator\.vqgan\.steps: must be that of the current version {first.id} .*, got 99"
    )
    with pytest.raises(ManifestError, match=carried):
        regenerate(other)


@pytest.mark.parametrize(("seconds", "limit"), [(0, math.inf), (36, 36)])
def test_the_budget_is_that_of_the_synthesis(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, seconds: int, limit: float
) -> None:
    built = Mock(side_effect=BudgetError("spent"))
    monkeypatch.setattr(regeneration._Run, "build", BUILD)
    monkeypatch.setattr(regeneration, "build", built)
    with pytest.raises(BudgetError, match="spent"):
        regenerate(manifest.with_values(regeneration={"worker_seconds": seconds}))
    assert built.call_args.kwargs["worker_seconds"] == limit


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def lost(*_: object) -> None:
    raise AssertionError("the roll-back was undone")


def regenerate_until_the_decision(manifest: Manifest) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attempt, "decide", killed)
        with pytest.raises(KeyboardInterrupt):
            regenerate(manifest)


def test_a_kill_before_the_decision_leaves_the_page(
    manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    first = publish(manifest)
    root = open_storage(manifest.storage.root)

    regenerate_until_the_decision(manifest)
    new = f"{attempts.CHALLENGER} {Attempt(root, 1).challenger}"
    old = f"{attempts.CURRENT} {first.id}"
    assert root.get(PAGE.format(1)).decode() == f"{old} | {new}"
    with pytest.raises(GateError, match="at least 9, got 8 of red"):
        regenerate(manifest)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"wrote {root.location(PAGE.format(1))}"


def test_a_refused_first_version_has_no_page(
    manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GateError, match="at least 9, got 8 of red"):
        regenerate(manifest)
    assert not open_storage(manifest.storage.root).exists(PAGE.format(0))
    assert "comparison.html" not in capsys.readouterr().out


@pytest.mark.parametrize("cleaned", [False, True])
def test_a_roll_back_after_a_kill_is_not_undone(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, cleaned: bool
) -> None:
    """The killed call has made its challenger current, and has not said so."""
    monkeypatch.setattr(attempts, "MINIMUM_PER_CLASS", 1)
    first, home = publish(manifest), open_storage(manifest.storage.root).child("data/vanilla")

    monkeypatch.setattr(regeneration, "write_contact_sheet", killed)
    with pytest.raises(KeyboardInterrupt):
        regenerate(manifest)
    assert current_id(home) != first.id
    advance(home, first.id)
    if cleaned:  # the number of the challenger is not one of those to keep
        root = open_storage(manifest.storage.root)
        planned = garbage_collection.plan(root, manifest, 1, 0)
        sweep.remove(root, manifest, planned, 1, 0, lambda: None)
    with pytest.raises(GateError, match=f"was current and is not any more; {first.id} stays"):
        regenerate(manifest)
    assert current_id(home) == first.id


@pytest.mark.parametrize("moment", ["training", "before the fence", "after the fence"])
def test_a_roll_back_that_the_gate_has_not_seen_stays(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(attempts, "MINIMUM_PER_CLASS", 1)
    first, home = publish(manifest), open_storage(manifest.storage.root).child("data/vanilla")
    older = fill(dataclasses.replace(manifest, salt=77), tasks(manifest))
    older.publish(blocks(manifest), {}, make_current=False)

    def roll_back(now: str) -> None:
        if now == moment:
            advance(home, older.id)

    def score(*_: object) -> float:
        roll_back("training")
        return 0.5

    def accept(home: Storage, name: str, fence: Callable[[], object]) -> None:
        def between() -> None:
            roll_back("before the fence")
            fence()
            roll_back("after the fence")

        advance(home, name, between)

    monkeypatch.setattr(regeneration._Run, "score", score)
    monkeypatch.setattr(regeneration, "advance", accept)
    monkeypatch.setattr(regeneration, "write_contact_sheet", lost)
    with pytest.raises(GateError, match=f"compared with {first.id}, but {older.id} is current now"):
        regenerate(manifest)
    assert current_id(home) == older.id


def test_an_unfinished_attempt_is_abandoned_if_asked(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(manifest)

    regenerate_until_the_decision(manifest)
    with pytest.raises(GateError, match="regeneration 2: "):
        regeneration.regenerate(
            manifest, "the command", abandon=True, accept_partial=False, threads=1
        )
    root = open_storage(manifest.storage.root)
    assert root.exists("regenerations/00000001/finished.json")
    assert any(key.endswith("/abandoned") for key in root.list("data/vanilla/versions/"))


STEPS = {
    "build": regeneration._Run,
    "score": regeneration._Run,
    "decide": Attempt,
    "advance": regeneration,
    "write_contact_sheet": regeneration,
}
"""The steps of a call in their order, and what they are attributes of."""


@pytest.mark.parametrize("lost", ["build", "score", "advance"])
def test_whoever_loses_the_lease_in_a_step_does_not_begin_the_next(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(attempts, "MINIMUM_PER_CLASS", 1)
    publish(manifest)
    done: list[str] = []

    def watch(name: str) -> None:
        step = getattr(STEPS[name], name)

        def watched(*arguments: Any) -> Any:
            result = step(*arguments)
            if name not in done:
                done.append(name)
                if name == lost:
                    root = open_storage(manifest.storage.root)
                    taken = layout.lease(regeneration.LEASE, 2)
                    lease.Lease(root, taken, "host:1", time.time()).renew()
            return result

        monkeypatch.setattr(STEPS[name], name, watched)

    for name in STEPS:
        watch(name)
    with pytest.raises(LeaseError, match="lease regenerate: is held by"):
        regenerate(manifest)
    assert done == list(STEPS)[: list(STEPS).index(lost) + 1]


def test_a_base_whose_removal_has_begun_is_not_carried_over(manifest: Manifest) -> None:
    manifest = manifest.with_values(regeneration={"share": 0.5})
    base = publish(manifest)
    base.storage.put(layout.REMOVING, b"")
    with pytest.raises(DfkdError, match=f"{base.id}: is being removed"):
        regenerate(manifest)


@pytest.mark.parametrize(
    ("section", "key", "value", "rule"),
    [
        ("", "classes", ("red", "green", "owl"), "classes: must be that of version"),
        ("synthesis", "image_size", 64, r"synthesis\.image_size: must be that of version"),
        ("distillation", "augmentation", ("flip",), r"teacher\.model: must be that of version"),
    ],
)
def test_students_that_the_current_version_cannot_have_are_refused_at_once(
    manifest: Manifest, tmp_path: Path, section: str, key: str, value: Any, rule: str
) -> None:
    """Not after the challenger and its students have been made."""
    teacher = write_teacher(tmp_path / "teacher", model_config(RESNET))
    changed: dict[str, Any] = {key: value}
    if section:
        changed = {section: dataclasses.replace(getattr(manifest, section), **changed)}
    publish(manifest)
    other = dataclasses.replace(manifest, teacher=teacher, **changed)
    for refusing in (regeneration.plan, regenerate):
        with pytest.raises(ManifestError, match=rule):
            refusing(other)
    assert not any(open_storage(manifest.storage.root).list("regenerations/"))


def test_finished_students_of_another_teacher_s_version_are_compared(
    manifest: Manifest, tmp_path: Path
) -> None:
    """They are only scored, so a run may change to a better teacher."""
    teacher = write_teacher(tmp_path / "teacher", model_config(RESNET))
    version = publish(manifest)
    manifest = dataclasses.replace(manifest, teacher=teacher)
    manifest = manifest.with_values(distillation={"augmentation": ("flip",)})
    name = student_name(manifest, version.fingerprint, "vanilla", 0)
    root = open_storage(manifest.storage.root)
    root.child(layout.student(name)).put(CARD, b"{}")
    with pytest.raises(GateError, match="at least 9, got 8 of red"):
        regenerate(manifest)
