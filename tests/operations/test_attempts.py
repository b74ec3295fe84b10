"""What an attempt has stored is read back as it was, and damage to it is one line."""

from pathlib import Path

import numpy as np
import pytest

from dfkd.config.manifest import Regeneration
from dfkd.dataset.published import PublishedVersion
from dfkd.errors import CorruptionError, ManifestError
from dfkd.operations.attempts import (
    MAX_NUMBER,
    Attempt,
    Decision,
    Rule,
    begin,
    diversity,
    gate,
    next_number,
    require_comparable,
    unfinished,
)
from dfkd.prompts.diversity import pair_cosines
from dfkd.storage.local import open_storage
from tests.helpers import small_manifest
from tests.helpers.partial_version import TASKS, fill, regenerated

FILE = "resnet18 int8"
IDENTITY = {"prompts.method": ["mix"], "salt": 3, "generator.vqgan.learning_rate": 0.1}
DECISION = Decision("0" * 16, "", 0.5, None, (Rule("at least 1", "", "0", False),))
DAMAGE = [
    *(b"", b"{", b"[]", b"{}", b"\xff", b'{"identity": [], "accuracy": "high"}'),
    *(b'{"identity": {"prompts.method": [3]}}', b'{"identity": {"salt": "3"}}'),
]


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return begin(open_storage(str(tmp_path)), 3, IDENTITY)


def test_what_was_claimed_and_decided_is_read_back(attempt: Attempt, tmp_path: Path) -> None:
    assert attempt.decision is None
    assert attempt.decide(DECISION) == DECISION
    found = unfinished(open_storage(str(tmp_path)))
    assert found is not None
    assert (found.number, found.identity, found.method) == (3, IDENTITY, "mix")
    assert found.decision == DECISION


def test_numbers_of_more_than_eight_digits_are_refused(tmp_path: Path) -> None:
    """They would be written under names that no later call lists."""
    root = open_storage(str(tmp_path))
    for salt, ends in ((MAX_NUMBER - 1, False), (MAX_NUMBER, True)):
        manifest = small_manifest.read(tmp_path, f"salt={salt}")
        if ends:
            with pytest.raises(ManifestError, match="salt: must be below 100000000 to regenerate"):
                next_number(root, None, manifest)
        else:
            begin(root, next_number(root, None, manifest), IDENTITY)
            assert unfinished(root) is not None
            with pytest.raises(ManifestError, match=r"salt: .*got 100000000"):
                next_number(root, None, manifest)


def test_the_next_number_follows_that_of_the_current_version(tmp_path: Path) -> None:
    root, manifest = open_storage(str(tmp_path)), small_manifest.read(tmp_path)
    base = fill(tmp_path)
    assert next_number(root, base, manifest) == 1  # its identity has no salt
    assert next_number(root, regenerated(tmp_path, base, 7, TASKS[:1]), manifest) == 8


@pytest.mark.parametrize(
    "setting",
    [
        "prompts.method=[vanilla, mix]",
        "synthesis.source=[latents, dfad]",
        "synthesis.source=[latents, bn]",
    ],
)
def test_several_methods_are_refused(tmp_path: Path, setting: str) -> None:
    manifest = small_manifest.read(tmp_path, setting)
    with pytest.raises(ManifestError, match=r"synthesis\.source: must make one method"):
        require_comparable(manifest)


@pytest.fixture
def owls(tmp_path: Path) -> PublishedVersion:
    """A version of owls and trees that has no shard of trees."""
    return fill(tmp_path, [task for task in TASKS if task.class_index == 0])


def test_a_class_without_images_is_refused_and_named(owls: PublishedVersion) -> None:
    rules = gate(Regeneration(), owls, FILE, 0.5, owls, 0.5).rules
    assert [(rule.value, rule.holds) for rule in rules][1] == ("0 of tree", False)


@pytest.mark.parametrize(("accuracy", "holds"), [(0.12, True), (0.1199, False)])
def test_a_student_that_loses_as_much_as_it_may_passes(
    tmp_path: Path, accuracy: float, holds: bool
) -> None:
    version, config = fill(tmp_path), Regeneration(tolerance=0.02)
    decision = gate(config, version, FILE, accuracy, version, 0.14)
    assert [rule.holds for rule in decision.rules] == [holds, True, True]
    assert decision.rules[0].text.startswith(f"mean accuracy of {FILE}, ")


@pytest.mark.parametrize("holds", [True, False])
def test_images_that_are_too_much_alike_are_refused(tmp_path: Path, holds: bool) -> None:
    version = fill(tmp_path)
    floor = diversity(version) + (0 if holds else 1e-6)
    config = Regeneration(diversity_floor=floor)
    decision = gate(config, version, FILE, 0.5, version, 0.5)
    assert [rule.holds for rule in decision.rules] == [True, True, holds]


def test_a_class_without_shards_counts_as_alike(owls: PublishedVersion) -> None:
    samples = [sample for receipt in owls.receipts() for sample in owls.samples(receipt)]
    rows = np.stack([sample.arrays["embedding"].astype(np.float64) for sample in samples])
    alone = 1 - pair_cosines(rows, np.zeros(len(rows), int))[0].mean()
    assert diversity(owls) == pytest.approx(alone / 2) != 0


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_claim_is_named(attempt: Attempt, tmp_path: Path, content: bytes) -> None:
    attempt.storage.put("claim.json", content)
    with pytest.raises(CorruptionError, match=r"00000003/claim\.json: not what dfkd wrote"):
        begin(open_storage(str(tmp_path)), 3, IDENTITY)


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_decision_is_named(attempt: Attempt, content: bytes) -> None:
    attempt.storage.put("decision.json", content)
    with pytest.raises(CorruptionError, match=r"00000003/decision\.json: not what dfkd wrote"):
        attempt.decide(DECISION)
