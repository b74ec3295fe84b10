"""The shipped files: complete, loadable, small, and scored by the job that wrote them."""

import hashlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import safetensors
import torch
import yaml
from safetensors.torch import load_file
from taming.modules.diffusionmodules.model import Decoder, Encoder

from dfkd.config import paths
from dfkd.config.manifest import Manifest
from dfkd.lab.miniature import clipart, evaluation_set, icons, making, recipe
from dfkd.lab.miniature.looks import DOMAINS, SPARSE
from dfkd.models.generators.generator import Condition
from dfkd.models.teacher import Teacher
from dfkd.utils.yaml import load
from tests.helpers.sources import load_generator

CPU = torch.device("cpu")
MANIFEST = "manifests/pretrain.yaml"
SCORES, DIFFUSION_SCORES = (
    json.loads((folder / "scores.json").read_text("utf-8"))
    for folder in (paths.ASSETS, paths.DIFFUSION)
)
OFFICIAL = {"airplane", "book", "camera", "car", "cat", "clock"} | {
    "dog", "fish", "heart", "house", "leaf", "tree",
}  # fmt: skip


@pytest.fixture(scope="module")
def members() -> list[tarfile.TarInfo]:
    with tarfile.open(paths.EVALUATION) as bundle:
        return bundle.getmembers()


def test_weights_are_small_enough_to_ship() -> None:
    weights = list(paths.ASSETS.rglob("*.safetensors"))
    assert len(weights) == 5
    assert sum(path.stat().st_size for path in weights) <= 60e6


def test_files_are_the_ones_that_were_scored() -> None:
    weights = {str(path.relative_to(paths.ASSETS)) for path in paths.ASSETS.glob("diffusion/*/*")}
    assert DIFFUSION_SCORES["files"].keys() == weights
    for name, known in (SCORES["files"] | DIFFUSION_SCORES["files"]).items():
        data = (paths.ASSETS / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (known["bytes"], known["sha256"])


def test_the_backbone_learned_classes_that_no_student_of_the_demo_learns() -> None:
    with safetensors.safe_open(paths.BACKBONE, "numpy") as file:
        classes = json.loads(file.metadata()["classes"])
    assert len(classes) == SCORES["backbone"]["classes"]
    assert evaluation_set.official_names().isdisjoint(classes)
    assert SCORES["backbone"]["accuracy"] >= 0.8


def test_the_shipped_models_were_scored_as_good_enough() -> None:
    """The teacher recognises objects and hears styles; both generators draw what it sees."""
    teacher = SCORES["teacher"]
    assert set(teacher["zero_shot_official"]["names"]) == OFFICIAL
    assert teacher["zero_shot_official"]["mean"] >= 0.8
    # Of two prompts of a class; 1 if the text tower ignores styles.
    assert teacher["styles"]["mix"] <= 0.85
    assert teacher["styles"]["ratio"] >= 0.3
    generator = SCORES["generator"]
    assert generator["hue_error_degrees"] <= 15
    assert generator["chroma_kept"] >= 0.9
    assert min(generator["teacher_kept"].values()) >= 0.95
    assert generator["codes_used_by_the_bundled_set"] == generator["codes"]
    assert min(DIFFUSION_SCORES["teacher"].values()) >= 0.6


def test_the_bundled_diffusion_model_draws_most_classes(teacher: Teacher) -> None:
    """As a manifest names it, one image of each class of the demo."""
    manifest = Manifest.read("manifests/miniature.yaml")
    model = load_generator(manifest)
    model.require(teacher, manifest.synthesis.image_size)
    assert model.text is not None
    prompts = [f"A {name}" for name in manifest.classes]
    ids = teacher.tokenize([*prompts, ""])
    with torch.no_grad():
        states = teacher.hidden_states(teacher.embed_tokens(ids), model.text.layers)
        condition = Condition(states[:-1], states[-1:])
        images = model.decode(model.init_latents(range(len(prompts)), 64, condition))
        nearest = (teacher.encode_image(images) @ teacher.encode_text(prompts).T).argmax(1)
    right = int((nearest == torch.arange(len(prompts))).sum())
    assert right >= len(prompts) / 2


def test_generator_has_the_official_layout() -> None:
    params = yaml.safe_load(paths.GENERATOR_CONFIG.read_text("utf-8"))["model"]["params"]
    state = load_file(paths.GENERATOR_WEIGHTS)
    for name, network in (("encoder", Encoder), ("decoder", Decoder)):
        part = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(name)}
        network(**params["ddconfig"]).load_state_dict(part, strict=True)
    assert state["quantize.embedding.weight"].shape == (params["n_embed"], params["embed_dim"])
    assert {key.split(".")[0] for key in state} == {
        "encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"
    }  # fmt: skip


def test_every_domain_shows_enough_images_of_each_official_class(
    members: list[tarfile.TarInfo],
) -> None:
    images = Counter(tuple(member.name.split("/")[:2]) for member in members)
    assert sum(images.values()) >= 3000
    assert len({label for _, label in images}) >= 40
    assert {domain for domain, _ in images} == DOMAINS.keys()
    for domain in DOMAINS.keys() - SPARSE:
        assert min(images[domain, label] for label in OFFICIAL) >= 20


def test_bundle_is_deterministic_and_of_the_held_out_sets(members: list[tarfile.TarInfo]) -> None:
    names = [member.name for member in members]
    assert names == sorted(names)
    assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} == {(0, 0, 0, 0o644)}
    allowed = {*icons.EVALUATION, clipart.EVALUATION}
    assert {name.split("/")[2].split("_")[0] for name in names} <= allowed
    assert {name.split("/")[1] for name in names} <= set(evaluation_set.NAMES)


def test_notice_names_every_set_with_its_licence() -> None:
    lines = (paths.ASSETS / "NOTICE").read_text("utf-8").splitlines()
    entries = [line for line in lines if line.startswith("- ")]
    # Clip art is one of the collections; it is in the public domain and has no line of its own.
    used = SCORES["data"]["training"]["collections"] - 1 + len(SCORES["data"]["validation"])
    assert len(entries) == used + len(icons.EVALUATION)
    for prefix in icons.EVALUATION:
        assert any(f"({prefix})" in line for line in entries)
    for line in entries:
        assert any(licence in line for licence in icons.LICENCES), line
        assert not any(f"({reserved})" in line for reserved in icons.RESERVED)


def test_the_card_is_the_job_s(tmp_path: Path) -> None:
    diffusion = json.loads((paths.ASSETS / "diffusion/scores.json").read_text("utf-8"))
    making.write_card(SCORES, diffusion, tmp_path)
    shipped, written = (folder / "MODEL_CARD.md" for folder in (paths.ASSETS, tmp_path))
    assert shipped.read_text("utf-8") == written.read_text("utf-8")
    assert SCORES["data"]["package"] == load(recipe.Recipe, MANIFEST).data.package
