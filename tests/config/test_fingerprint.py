"""The fingerprint changes with whatever can change a pixel or a label, and with nothing else."""

from pathlib import Path

import pytest

from dfkd.config.fingerprint import fingerprint, identity, method_of, refuse_difference, sha256_file
from dfkd.config.manifest import Manifest
from dfkd.errors import FingerprintError

WEIGHTS = {"teacher.weights": "aa", "generator.weights": "bb", "generator.config": "cc"}


def read(tmp_path: Path, *overrides: str) -> Manifest:
    file = tmp_path / "manifest.yaml"
    file.write_text(
        "name: x\nclasses: [dog, cat]\nstorage: {root: a}\nprompts: {method: mix}\n"
        "teacher: {model: ViT-B-32-quickgelu, weights: openai}\n"
        "generator: {config: miniature, weights: miniature}\n"
    )
    return Manifest.read(file, overrides)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "salt=1",
        "classes=[cat, dog]",
        "teacher.template='One {class}'",
        "prompts.method=random",
        "prompts.scale=5",
        "prompts.guard.attempts=3",
        "synthesis.steps=3",
        "synthesis.pace=2",
        "synthesis.images_per_class=5",
        "synthesis.batch_size=4",
        "synthesis.precision=bfloat16",
    ],
)
def test_what_changes_a_pixel_changes_the_fingerprint(tmp_path: Path, override: str) -> None:
    plain = fingerprint(identity(read(tmp_path), WEIGHTS))
    assert fingerprint(identity(read(tmp_path, override), WEIGHTS)) != plain


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "storage.root=elsewhere",
        "cache=elsewhere",
        "distillation.epochs=3",
        "evaluation.average=classes",
        "fewshot={shots: [3], epochs: 7, starts: [scratch]}",
        "cluster.workers=9",
        "regeneration={classes: [dog], share: 0.5}",
        "teacher.weights=/moved/weights.pt",
        "generator.weights=/moved/model.ckpt",
    ],
)
def test_what_changes_no_pixel_keeps_the_fingerprint(tmp_path: Path, override: str) -> None:
    plain = fingerprint(identity(read(tmp_path), WEIGHTS))
    assert fingerprint(identity(read(tmp_path, override), WEIGHTS)) == plain


@pytest.mark.parametrize("role", list(WEIGHTS))
def test_other_weights_are_another_fingerprint(tmp_path: Path, role: str) -> None:
    manifest = read(tmp_path)
    other = fingerprint(identity(manifest, WEIGHTS | {role: "dd"}))
    assert other != fingerprint(identity(manifest, WEIGHTS))


def test_what_is_carried_over_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    some = read(tmp_path, "salt=1", "regeneration.share=0.5")
    prints = {
        fingerprint(identity(some, WEIGHTS)),
        fingerprint(identity(some, WEIGHTS, "ab" * 32)),
        fingerprint(identity(some, WEIGHTS, "cd" * 32)),
        fingerprint(identity(read(tmp_path, "salt=1"), WEIGHTS, "ab" * 32)),
        fingerprint(
            identity(read(tmp_path, "salt=2", "regeneration.share=0.5"), WEIGHTS, "ab" * 32)
        ),
    }
    assert len(prints) == 5


def test_the_fingerprint_of_a_manifest_never_changes(tmp_path: Path) -> None:
    """Versions that are published under it would be made again, and unfinished ones refused."""
    whole = fingerprint(identity(read(tmp_path), WEIGHTS))
    assert whole == "15f57b32b6c797a548d924e72944e56fbff5ce423ca571aca2145dcb648c8dbb"


@pytest.mark.parametrize(
    "override",
    [
        "synthesis.method=[latent, cmi]",
        "synthesis.batch_norm_weight=[0, 0.1]",
        "inversion.cmi.steps=3",
    ],
)
def test_what_is_compared_with_a_method_is_none_of_it(tmp_path: Path, override: str) -> None:
    manifest = read(tmp_path, override).with_method("mix")
    plain = fingerprint(identity(read(tmp_path), WEIGHTS))
    assert fingerprint(identity(manifest, WEIGHTS)) == plain


def test_an_inversion_depends_on_its_own_settings(tmp_path: Path) -> None:
    """Not on the generator that it does not use, nor on prompts and latents."""
    teacher = {"teacher.weights": "aa"}

    def found(*overrides: str) -> str:
        return fingerprint(identity(read(tmp_path, "synthesis.method=cmi", *overrides), teacher))

    for same in (
        "synthesis.steps=3",
        "synthesis.batch_size=2",
        "synthesis.batch_norm_weight=0.3",
        "prompts.scale=5",
        "prompts.method=random",
        "generator.weights=/other.ckpt",
        "inversion.dfad.rounds=7",
        "distillation.epochs=3",
    ):
        assert found(same) == found(), same
    for other in (
        "synthesis.shard_size=7",
        "synthesis.precision=bfloat16",
        "inversion.cmi.steps=7",
        "synthesis.method=dfad",
        "salt=1",
    ):
        assert found(other) != found(), other


def test_an_identity_says_its_method(tmp_path: Path) -> None:
    manifest = read(
        tmp_path, "synthesis.method=[latent, pre]", "synthesis.batch_norm_weight=[0, 0.1]"
    )
    assert manifest.methods == ("mix", "mix-bn", "pre")
    for method in manifest.methods:
        assert method_of(identity(manifest.with_method(method), WEIGHTS)) == method
    prints = {fingerprint(identity(manifest.with_method(m), {})) for m in manifest.methods}
    assert len(prints) == 3


def test_a_list_of_methods_has_no_fingerprint(tmp_path: Path) -> None:
    manifest = read(tmp_path, "prompts.method=[mix, random]")
    with pytest.raises(ValueError, match="one method"):
        identity(manifest, WEIGHTS)
    methods = [fingerprint(identity(manifest.with_method(m), WEIGHTS)) for m in ("mix", "random")]
    assert methods[0] == fingerprint(identity(read(tmp_path), WEIGHTS))
    assert methods[0] != methods[1]


def test_a_difference_is_refused_key_by_key(tmp_path: Path) -> None:
    one, two = read(tmp_path), read(tmp_path, "synthesis.steps=7", "seed=4")
    refuse_difference(identity(one, WEIGHTS), identity(one, WEIGHTS), "there")
    with pytest.raises(FingerprintError) as caught:
        refuse_difference(identity(one, WEIGHTS), identity(two, WEIGHTS), "data/mix")
    assert "seed: 0 there, 4 here" in str(caught.value)
    assert "synthesis.steps: 500 there, 7 here" in str(caught.value)
    assert "--abandon" in str(caught.value)


def test_sha256_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "abc"
    file.write_bytes(b"abc")
    assert sha256_file(file).startswith("ba7816bf8f01cfea")
