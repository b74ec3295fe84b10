"""The fingerprint changes with whatever can change a pixel or a label, and with nothing else."""

from pathlib import Path

import pytest

from dfkd.config.hashing import fingerprint
from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.methods import method_of
from tests.helpers import small_manifest

WEIGHTS = {"teacher.weights": "aa", "generator.weights": "bb", "generator.config": "cc"}


def read(tmp_path: Path, *overrides: str) -> Manifest:
    teacher = {"model": "ViT-B-32-quickgelu", "weights": "openai"}
    return small_manifest.read(tmp_path, *overrides, teacher=teacher, prompts={"method": "mix"})


def digest(manifest: Manifest, *carried: str) -> str:
    return fingerprint(identity(manifest, WEIGHTS, *carried))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "salt=1",
        "classes=[cat, dog]",
        "teacher.template='One {class}'",
        "prompts.method=random",
        "prompts.template='{class}, {style}'",
        "prompts.styles=miniature",
        "synthesis.steps=3",
        "synthesis.pace=2",
        "synthesis.images_per_class=5",
        "synthesis.batch_size=4",
        "synthesis.precision=bfloat16",
    ],
)
def test_what_changes_a_pixel_changes_the_fingerprint(tmp_path: Path, override: str) -> None:
    assert digest(read(tmp_path, override)) != digest(read(tmp_path))


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "storage.root=elsewhere",
        "cache=elsewhere",
        "prompts.scale=5",
        "distillation.epochs=3",
        "evaluation.average=classes",
        "cluster.workers=9",
        "regeneration={classes: [dog], share: 0.5}",
        "teacher.weights=/moved/weights.pt",
        "generator.weights=/moved/model.ckpt",
    ],
)
def test_what_changes_no_pixel_keeps_the_fingerprint(tmp_path: Path, override: str) -> None:
    assert digest(read(tmp_path, override)) == digest(read(tmp_path))


@pytest.mark.parametrize("role", list(WEIGHTS))
def test_other_weights_are_another_fingerprint(tmp_path: Path, role: str) -> None:
    manifest = read(tmp_path)
    assert fingerprint(identity(manifest, WEIGHTS | {role: "dd"})) != digest(manifest)


def test_what_is_carried_over_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    some = read(tmp_path, "salt=1", "regeneration.share=0.5")
    digests = {
        digest(some),
        digest(some, "ab" * 32),
        digest(some, "cd" * 32),
        digest(read(tmp_path, "salt=1", "regeneration={share: 0.5, classes: [dog]}"), "ab" * 32),
        digest(read(tmp_path, "salt=1"), "ab" * 32),
        digest(read(tmp_path, "salt=2", "regeneration.share=0.5"), "ab" * 32),
    }
    assert len(digests) == 6


def test_the_fingerprint_of_a_manifest_never_changes(tmp_path: Path) -> None:
    """Versions that are published under it would be made again, and unfinished ones refused."""
    expected = "46006a1f12c5141f1d4a25d080ad3ea93a8409bca1ba1654963299a5b30fae4a"
    assert digest(read(tmp_path)) == expected


@pytest.mark.parametrize(
    "override",
    [
        "synthesis.method=[latent, cmi]",
        "synthesis.batch_norm_weight=[0, 0.1]",
        "inversion.cmi.steps=3",
    ],
)
def test_other_methods_of_a_run_are_no_part_of_the_fingerprint(
    tmp_path: Path, override: str
) -> None:
    assert digest(read(tmp_path, override).with_method("mix")) == digest(read(tmp_path))


INVERSIONS = {
    "deepinversion": ["deepinversion.steps"],
    "dfad": ["latent", "width", "snapshots", "dfad.rounds"],
    "cmi": ["latent", "width", "cmi.steps"],
    "pre": ["latent", "width", "snapshots", "pre.rounds"],
}
"""Of each conventional method keys of `inversion` that it reads; it reads none of the others'."""


def of_inversion(tmp_path: Path, method: str, *overrides: str) -> str:
    manifest = read(tmp_path, f"synthesis.method={method}", *overrides)
    return fingerprint(identity(manifest, {"teacher.weights": "aa"}))


@pytest.mark.parametrize("method", INVERSIONS)
def test_an_inversion_depends_on_the_keys_that_it_reads(tmp_path: Path, method: str) -> None:
    for key in {key for keys in INVERSIONS.values() for key in keys}:
        changed = of_inversion(tmp_path, method, f"inversion.{key}=7")
        assert (changed != of_inversion(tmp_path, method)) == (key in INVERSIONS[method]), key


def test_an_inversion_depends_on_its_own_settings(tmp_path: Path) -> None:
    """The generator, prompts and latents do not matter, because it does not use them."""

    def found(*overrides: str) -> str:
        return of_inversion(tmp_path, "cmi", *overrides)

    for same in (
        "synthesis.steps=3",
        "synthesis.batch_size=2",
        "synthesis.batch_norm_weight=0.3",
        "prompts.scale=5",
        "prompts.method=random",
        "generator.weights=/other.ckpt",
        "distillation.epochs=3",
    ):
        assert found(same) == found(), same
    for other in (
        "synthesis.images_per_class=7",
        "synthesis.shard_size=7",
        "synthesis.image_size=64",
        "synthesis.precision=bfloat16",
        "synthesis.format=jpg",
        "synthesis.method=dfad",
        "salt=1",
    ):
        assert found(other) != found(), other


def test_the_method_can_be_read_from_an_identity(tmp_path: Path) -> None:
    manifest = read(
        tmp_path, "synthesis.method=[latent, pre]", "synthesis.batch_norm_weight=[0, 0.1]"
    )
    assert manifest.methods == ("mix", "mix-bn", "pre")
    for method in manifest.methods:
        assert method_of(identity(manifest.with_method(method), WEIGHTS)) == method
    assert len({digest(manifest.with_method(method)) for method in manifest.methods}) == 3


def test_a_list_of_methods_has_no_fingerprint(tmp_path: Path) -> None:
    manifest = read(tmp_path, "prompts.method=[mix, random]")
    with pytest.raises(ValueError, match="one method"):
        identity(manifest, WEIGHTS)
    mix, random = (digest(manifest.with_method(method)) for method in ("mix", "random"))
    assert mix == digest(read(tmp_path)) != random


DIFFUSERS = (
    "generator={kind: diffusers, weights: here, guidance: 3, refine_steps: 2}",
    "synthesis.steps=8",
)
FOLDER = {"teacher.weights": "aa", "generator.weights/unet": "bb", "generator.weights/vae": "cc"}


def of_diffusers(tmp_path: Path, *overrides: str) -> dict[str, object]:
    return identity(read(tmp_path, *DIFFUSERS, *overrides), FOLDER)


@pytest.mark.parametrize(
    "override",
    [
        "generator.guidance=2",
        "generator.refine_steps=3",
        "synthesis.steps=4",
        "generator.refine_rate=0.5",
    ],
)
def test_keys_of_a_diffusion_model_are_in_the_fingerprint(tmp_path: Path, override: str) -> None:
    assert of_diffusers(tmp_path, override) != of_diffusers(tmp_path)


def test_a_folder_s_files_replace_its_path(tmp_path: Path) -> None:
    found = of_diffusers(tmp_path)
    assert found["generator.weights/unet.sha256"] == "bb"
    assert found["generator.kind"] == "diffusers"
    assert found == of_diffusers(tmp_path, "generator.weights=moved")
    sampled = identity(read(tmp_path, *DIFFUSERS, "generator.refine_steps=0"), FOLDER)
    assert not {"generator.config", "generator.weights", "synthesis.quantise"} & found.keys()
    assert found.keys() - sampled.keys() == {
        "generator.refine_rate",
        *(f"synthesis.{key}" for key in ("views", "view_noise", "compile", "batch_norm_weight")),
    }
    assert "synthesis.learning_rate" not in found


def test_what_a_generator_takes_by_itself_is_in_the_fingerprint(tmp_path: Path) -> None:
    """As if the manifest stated it; both ways to write no guidance are the same images."""
    assert digest(read(tmp_path)) == digest(read(tmp_path, "synthesis.steps=500"))
    named = "generator={kind: diffusers, weights: sd-turbo}"

    def found(*overrides: str) -> dict[str, object]:
        return identity(read(tmp_path, named, *overrides), FOLDER)

    assert found() == found("synthesis.steps=1", "generator.guidance=1")
    assert found() == found("generator.guidance=0")
    assert found() != found("synthesis.steps=2")
