"""The fingerprint changes with whatever can change a pixel or a label, and with nothing else."""

import json
from pathlib import Path

import pytest

from dfkd.config.hashing import fingerprint
from dfkd.config.identity import class_names, identity
from dfkd.config.manifest import Manifest
from dfkd.config.methods import method_of
from tests.helpers import small_manifest

MEANT = [f"{{name: crane, prompt: {meaning}}}" for meaning in ("crane", "a bird", "a machine")]
WEIGHTS = {"teacher.weights": "aa", "generator.vqgan.weights": "bb", "generator.vqgan.config": "cc"}


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
        "generator.vqgan.steps=3",
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
        "prompts.random.scale=5",
        "distillation.epochs=3",
        "evaluation.average=classes",
        "cluster.workers=9",
        "regeneration={classes: [dog], share: 0.5}",
        "teacher.weights=/moved/weights.pt",
        "generator.vqgan.weights=/moved/model.ckpt",
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
    expected = "4292c626bdd1130ff5728bc5864833a6fafdd7d614e237c31a909138b182ef7d"
    assert digest(read(tmp_path)) == expected


def test_a_meaning_is_part_of_the_fingerprint_unless_it_is_the_name(tmp_path: Path) -> None:
    meant = [digest(read(tmp_path, f"classes=[{first}, cat]")) for first in MEANT]
    plain = digest(read(tmp_path, "classes=[crane, cat]"))
    assert meant[0] == plain
    assert len({plain, *meant}) == 3
    assert class_names(identity(read(tmp_path, f"classes=[{MEANT[1]}, cat]"), WEIGHTS)) == [
        "crane",
        "cat",
    ]


def test_the_content_of_captions_is_in_the_fingerprint_and_not_their_path(tmp_path: Path) -> None:
    found = []
    for name, text in (("one", "{class} asleep"), ("two", "{class} asleep"), ("one", "{class}!")):
        (tmp_path / name).write_text(json.dumps({"text": text}))
        words = ("prompts.method=captions", f"prompts.captions.file={tmp_path / name}")
        manifest = read(tmp_path, *words)
        found.append(identity(manifest, manifest.prompt_settings.hashes()))
    assert found[0] == found[1] != found[2]
    assert "prompts.captions.file" not in found[0]


@pytest.mark.parametrize(
    "override",
    [
        "synthesis.source=[latents, cmi]",
        "synthesis.source=[latents, bn]",
        "synthesis.bn.weight=0.3",
        "prompts.contrastive.updates=3",
        "generator.diffusers={weights: miniature}",
        "synthesis.cmi.steps=3",
    ],
)
def test_other_methods_of_a_run_are_no_part_of_the_fingerprint(
    tmp_path: Path, override: str
) -> None:
    assert digest(read(tmp_path, override).with_method("mix")) == digest(read(tmp_path))


INVERSIONS = {
    "deepinversion": ["steps", "batch_size"],
    "dfad": ["latent", "width", "snapshots", "rounds"],
    "cmi": ["latent", "width", "steps"],
    "pre": ["latent", "width", "snapshots", "rounds"],
}
"""Keys of each conventional method; it reads none of the others'."""


def of_inversion(tmp_path: Path, method: str, *overrides: str) -> str:
    manifest = read(tmp_path, f"synthesis.source={method}", *overrides)
    return fingerprint(identity(manifest, {"teacher.weights": "aa"}))


@pytest.mark.parametrize("method", INVERSIONS)
def test_an_inversion_depends_on_the_keys_that_it_reads(tmp_path: Path, method: str) -> None:
    for owner, keys in INVERSIONS.items():
        for key in keys:
            changed = of_inversion(tmp_path, method, f"synthesis.{owner}.{key}=7")
            assert (changed != of_inversion(tmp_path, method)) == (owner == method), key


def test_an_inversion_depends_on_its_own_settings(tmp_path: Path) -> None:
    """The generator, prompts and latents do not matter, because it does not use them."""

    def found(*overrides: str) -> str:
        return of_inversion(tmp_path, "cmi", *overrides)

    for same in (
        "generator.vqgan.steps=3",
        "synthesis.batch_size=2",
        "synthesis.bn.weight=0.3",
        "prompts.random.scale=5",
        "prompts.method=random",
        "generator.vqgan.weights=/other.ckpt",
        "distillation.epochs=3",
    ):
        assert found(same) == found(), same
    for other in (
        "synthesis.images_per_class=7",
        "synthesis.shard_size=7",
        "synthesis.image_size=64",
        "synthesis.precision=bfloat16",
        "synthesis.format=jpg",
        "synthesis.source=dfad",
        "salt=1",
    ):
        assert found(other) != found(), other


def test_the_method_can_be_read_from_an_identity(tmp_path: Path) -> None:
    manifest = read(tmp_path, "synthesis.source=[latents, bn, pre]", "synthesis.bn.weight=0.1")
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
    "generator={kind: diffusers, diffusers: {weights: here, guidance: 3, refine_steps: 2}}",
    "generator.diffusers.steps=8",
)
FOLDER = {
    "teacher.weights": "aa",
    "generator.diffusers.weights/unet": "bb",
    "generator.diffusers.weights/vae": "cc",
}


def of_diffusers(tmp_path: Path, *overrides: str) -> dict[str, object]:
    return identity(read(tmp_path, *DIFFUSERS, *overrides), FOLDER)


@pytest.mark.parametrize(
    "override",
    [
        "generator.diffusers.guidance=2",
        "generator.diffusers.refine_steps=3",
        "generator.diffusers.steps=4",
        "generator.diffusers.refine_rate=0.5",
    ],
)
def test_keys_of_a_diffusion_model_are_in_the_fingerprint(tmp_path: Path, override: str) -> None:
    assert of_diffusers(tmp_path, override) != of_diffusers(tmp_path)


def test_a_folder_s_files_replace_its_path(tmp_path: Path) -> None:
    found = of_diffusers(tmp_path)
    assert found["generator.diffusers.weights/unet.sha256"] == "bb"
    assert found["generator.kind"] == "diffusers"
    assert found == of_diffusers(tmp_path, "generator.diffusers.weights=moved")
    sampled = identity(read(tmp_path, *DIFFUSERS, "generator.diffusers.refine_steps=0"), FOLDER)
    assert "generator.diffusers.weights" not in found
    assert not [key for key in found if "vqgan" in key]
    unread = {"synthesis.views", "synthesis.view_noise", "synthesis.compile"}
    assert found.keys() - sampled.keys() == unread


def test_what_a_generator_takes_by_itself_is_in_the_fingerprint(tmp_path: Path) -> None:
    """As if the manifest stated it; both ways to write no guidance are the same images."""
    assert digest(read(tmp_path)) == digest(read(tmp_path, "generator.vqgan.steps=500"))
    named = "generator={kind: diffusers, diffusers: {weights: sd-turbo}}"

    def found(*overrides: str) -> dict[str, object]:
        return identity(read(tmp_path, named, *overrides), FOLDER)

    assert found() == found("generator.diffusers.steps=1", "generator.diffusers.guidance=1")
    assert found() == found("generator.diffusers.guidance=0")
    assert found() != found("generator.diffusers.steps=2")
