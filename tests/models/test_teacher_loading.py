"""Files of a teacher: what is hashed, loaded, and refused."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.tokenizer import default_bpe
from safetensors.torch import load_file, save_file

from dfkd.config.hashing import sha256_file
from dfkd.config.synthesis import TeacherConfig
from dfkd.errors import ManifestError, WeightsError
from dfkd.models.labeller import file_hashes
from dfkd.models.teacher import Teacher
from dfkd.utils.device import CPU
from tests.helpers.http_server import Publisher, keep_hub_model
from tests.helpers.tiny_models import (
    RESNET,
    TEXTS,
    VIT,
    load_teacher,
    model_config,
    random_model,
    write_teacher,
)


def test_every_file_that_matters_is_hashed(tmp_path: Path) -> None:
    shutil.copy(default_bpe(), tmp_path / "merges.txt.gz")
    kwargs = {"bpe_path": "merges.txt.gz"}
    config = write_teacher(tmp_path, model_config(VIT, tokenizer_kwargs=kwargs))
    assert file_hashes(config) == {
        "teacher.model": sha256_file(config.model),
        "teacher.weights": sha256_file(config.weights),
        "teacher.tokenizer": sha256_file(tmp_path / "merges.txt.gz"),
    }


def test_the_configuration_beside_the_weights_is_hashed(tmp_path: Path) -> None:
    """It decides mean and deviation, whatever architecture `teacher.model` names."""
    named = write_teacher(tmp_path, model_config(VIT))
    tree = preprocessed(mean=[0.5, 0.4, 0.3])
    (tmp_path / "plain").mkdir()
    shutil.copy(named.weights, tmp_path / "plain")
    hashes = [file_hashes(TeacherConfig(model=named.model, weights=str(tmp_path / "plain")))]
    assert hashes == [file_hashes(named)]
    for blue in (0.3, 0.2):
        tree["preprocess_cfg"]["mean"][2] = blue
        folder = tmp_path / str(blue)
        shutil.copytree(tmp_path / "plain", folder)
        (folder / "open_clip_config.json").write_text(json.dumps(tree))
        hashes.append(file_hashes(TeacherConfig(model=named.model, weights=str(folder))))
        by_folder = file_hashes(TeacherConfig(model=str(folder), weights=str(folder)))
        # The model is that file.
        assert by_folder.keys() == {"teacher.weights", "teacher.model", "teacher.preprocessing"}
    without, one, two = hashes
    changed = {"teacher.weights/config", "teacher.preprocessing"}
    assert {role for role in one if one[role] != two[role]} == changed
    assert one.keys() - without.keys() == changed


def test_a_smaller_vocabulary_comes_from_the_file_beside_the_configuration(tmp_path: Path) -> None:
    merges = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")[:301]
    (tmp_path / "merges.txt.gz").write_bytes(gzip.compress("\n".join(merges).encode()))
    kwargs = {"bpe_path": "merges.txt.gz"}
    teacher = load_teacher(tmp_path, model_config(VIT, vocab_size=814, tokenizer_kwargs=kwargs))
    tokens = teacher.tokenize(["the dog"])
    assert int(tokens.max()) == 813
    assert teacher.token_table.shape[0] == 814
    assert torch.isfinite(teacher.encode_text(["the dog"])).all()


def test_a_tokenizer_with_more_tokens_than_the_tower_is_refused(tmp_path: Path) -> None:
    """The merges of a smaller vocabulary are lost, so CLIP's own 49,408 tokens would be used."""
    with pytest.raises(ManifestError, match=r"49408 tokens, and the text tower knows 814"):
        load_teacher(tmp_path, model_config(VIT, vocab_size=814))


def test_a_tag_s_own_preprocessing_is_part_of_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file by its path has the preprocessing of the architecture."""
    file = write_teacher(tmp_path, model_config(VIT)).weights
    cache = tmp_path / "cache"
    keep_hub_model(cache, "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", Path(file))
    tag = TeacherConfig(model="ViT-L-14", weights="laion2b_s32b_b82k")
    by_path = TeacherConfig(model="ViT-L-14", weights=file)
    of_tag = file_hashes(tag, str(cache))
    assert of_tag.keys() - file_hashes(by_path).keys() == {"teacher.preprocessing"}


def test_the_way_a_picture_becomes_a_square_changes_no_label(tmp_path: Path) -> None:
    """Synthesised images are square, so it is no part of the identity."""
    named = write_teacher(tmp_path / "files", model_config(VIT))
    square = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    seen = {}
    for mode in ("shortest", "squash"):
        folder = tmp_path / mode
        folder.mkdir()
        shutil.copy(named.weights, folder)
        tree = preprocessed(interpolation="bilinear", resize_mode=mode)
        (folder / "open_clip_config.json").write_text(json.dumps(tree))
        config = TeacherConfig(model=named.model, weights=str(folder))
        teacher, hashes = Teacher.load(config, CPU), file_hashes(config)
        assert teacher.resizing == (mode, "bilinear")
        seen[mode] = teacher.encode_image(square), hashes["teacher.preprocessing"]
    assert torch.equal(seen["shortest"][0], seen["squash"][0])
    assert seen["shortest"][1] == seen["squash"][1]


def test_a_job_asks_no_hub_for_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `dfkd fetch` does: a node without a network would wait for it."""
    with Publisher() as hub:
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        config = TeacherConfig(model="ViT-L-14", weights="laion2b_s32b_b82k")
        with pytest.raises(WeightsError, match=r"needs laion/CLIP-ViT-L-14-.* not in the cache"):
            file_hashes(config, str(tmp_path))
        assert hub.seen == []


def test_weights_that_a_converter_takes_for_others_are_refused(tmp_path: Path) -> None:
    """The name of a tensor of MobileCLIP, whose converter then looks for the rest."""
    config = write_teacher(tmp_path, model_config(VIT))
    key = "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight"
    save_file({key: torch.zeros(1)}, tmp_path / "mobile.safetensors")
    assert "must be weights of" in refusal(config.model, str(tmp_path / "mobile.safetensors"))


def test_weights_rounded_to_whole_numbers_are_refused(tmp_path: Path) -> None:
    config = write_teacher(tmp_path, model_config(VIT))
    state = load_file(config.weights)
    state["text_projection"] = state["text_projection"].to(torch.int8)
    save_file(state, tmp_path / "int8.safetensors")
    text = refusal(config.model, str(tmp_path / "int8.safetensors"))
    assert "differs in kind of numbers at text_projection" in text


@pytest.mark.parametrize("key", ["model", "weights"])
def test_the_home_of_an_unknown_user_is_no_file(key: str) -> None:
    values = {"model": "ViT-B-32", "weights": "openai"} | {key: "~nosuchuser/teacher.json"}
    assert refusal(**values).startswith(f"teacher.{key}: ")


def test_loading_leaves_random_state_and_open_clip_s_registry_alone(tmp_path: Path) -> None:
    config = write_teacher(tmp_path, model_config(RESNET))
    before, models = torch.random.get_rng_state(), open_clip.list_models()
    Teacher.load(config, CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert open_clip.list_models() == models


def test_a_directory_holds_configuration_and_weights(tmp_path: Path) -> None:
    config = write_teacher(tmp_path / "files", model_config(VIT, quick=True))
    tree = {"model_cfg": model_config(VIT, quick=True), "preprocess_cfg": {}}
    folder = tmp_path / "open_clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(tree))
    shutil.copy(config.weights, folder / "open_clip_model.safetensors")
    (folder / "another.bin").write_bytes(b"not this one")
    expected = Teacher.load(config, CPU).encode_text(TEXTS)
    teacher = Teacher.load(TeacherConfig(model=str(folder), weights=str(folder)), CPU)
    assert torch.equal(teacher.encode_text(TEXTS), expected)


def refusal(model: str, weights: str) -> str:
    with pytest.raises(ManifestError) as caught:
        Teacher.load(TeacherConfig(model=model, weights=weights), CPU)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("model", "weights", "reasons"),
    [
        ("ViTB32", "openai", ["did you mean 'ViT-B-32'"]),
        ("hf-hub:someone/something", "openai", ["teacher.model"]),
        ("ViT-B-32", "laion9b", ["tag of ViT-B-32", "laion2b_s34b_b79k"]),
        ("ViT-B-32", "/no/such/file.pt", ["/no/such/file.pt"]),
        ("RN50", "openai", ["RN50 is built with GELU", "set teacher.model=RN50-quickgelu"]),
        ("RN50", "OpenAI", ["trained with QuickGELU", "set teacher.model=RN50-quickgelu"]),
        ("coca_ViT-B-32", "laion2b_s13b_b90k", ["cls_emb"]),
        ("ViT-B-16-SigLIP", "webli", ["CLIP's tokenizer", "'timm/ViT-B-16-SigLIP'", "labeller"]),
    ],
)
def test_a_model_or_tag_that_cannot_be_loaded_is_refused(
    model: str, weights: str, reasons: list[str]
) -> None:
    text = refusal(model, weights)
    assert all(reason in text for reason in reasons)


def test_half_precision_weights_load_as_float32(tmp_path: Path) -> None:
    config = write_teacher(tmp_path, model_config(VIT))
    state = {
        key: value.half() for key, value in random_model(model_config(VIT)).state_dict().items()
    }
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "h.pt"
    )
    teacher = Teacher.load(TeacherConfig(model=config.model, weights=str(tmp_path / "h.pt")), CPU)
    assert teacher.token_table.dtype == torch.float32
    assert torch.equal(teacher.token_table, state["token_embedding.weight"].float())


def test_a_clip_state_dict_loads_into_the_custom_text_form(tmp_path: Path) -> None:
    plain = write_teacher(tmp_path, model_config(VIT))
    custom = tmp_path / "custom.json"
    custom.write_text(json.dumps(model_config(VIT, custom=True)))
    teacher = Teacher.load(TeacherConfig(model=str(custom), weights=plain.weights), CPU)
    assert torch.equal(teacher.encode_text(TEXTS), Teacher.load(plain, CPU).encode_text(TEXTS))


def test_weights_of_another_architecture_are_described_in_one_line(tmp_path: Path) -> None:
    vit = write_teacher(tmp_path / "vit", model_config(VIT))
    resnet = write_teacher(tmp_path / "resnet", model_config(RESNET))
    wide = write_teacher(tmp_path / "wide", model_config(VIT, width=64))
    text = refusal(vit.model, resnet.weights)
    assert "lacks visual.class_embedding" in text
    assert "has no use for visual.attnpool" in text
    text = refusal(vit.model, wide.weights)
    assert "differs in shape at" in text
    assert "ln_final.bias (64,) for (32,)" in text


def preprocessed(**config: Any) -> dict[str, Any]:
    """A configuration with such a preprocessing."""
    return {"model_cfg": model_config(VIT), "preprocess_cfg": config}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_teacher(tmp_path_factory.mktemp("weights"), model_config(VIT)).weights


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (model_config(VIT, custom=True, embed_cls=True), "cls_emb"),
        (model_config(VIT, custom=True, no_causal_mask=True, use_pad_mask=True), "use_pad_mask"),
        (model_config(VIT, custom=True, hf_model_name="bert-base-uncased"), "hf_model_name"),
        (model_config(VIT) | {"multimodal_cfg": {}}, "CoCa"),
        (model_config(VIT, hf_tokenizer_name="xlm-roberta-base"), "hf_tokenizer_name 'xlm-rob"),
        (model_config({"timm_model_name": "hf-hub:x/y"}), "a hub's or a folder's ('hf-hub:x/y')"),
        (model_config(VIT, custom=True, pool_type="last"), "pool_type 'last'"),
        (model_config(VIT, custom=True, proj_type="none"), "proj_type 'none'"),
        (model_config(VIT, custom=True, proj_bias=True), "proj_bias True"),
        (model_config(VIT, custom=True, pool_type="eos"), "pool_type 'eos'"),
        (model_config(VIT, strip_sep_token=True), "buildable by open_clip"),
        (model_config(VIT, tokenizer_kwargs={"strip_sep_token": True}), "strip_sep_token"),
        (model_config(VIT, tokenizer_kwargs={"trust_remote_code": True}), "trust_remote_code"),
        (model_config(VIT, tokenizer_kwargs={"clean": 1}), "its tokenizer cannot be loaded"),
        ({"embed_dim": 16}, "vision_cfg, text_cfg"),
        (model_config(VIT, layers="many"), "buildable by open_clip"),
        (model_config(VIT | {"patch_size": 0}), "buildable by open_clip"),
        (model_config(VIT, vocab_size=60_000), "differs in shape at token_embedding.weight"),
        (preprocessed(mean=[0, 0, float("nan")]), "JSON"),
        (preprocessed(mean=["0", "0", "nan"]), "preprocess_cfg.mean.0: "),
        (preprocessed(mean=[0.5]), "preprocess_cfg.mean: "),
        (preprocessed(std=[1.0] * 4), "preprocess_cfg.std: "),
        (preprocessed(std=[0, 1, 1]), "preprocess_cfg.std.0: "),
        (preprocessed(interpolation="nearest"), "preprocess_cfg.interpolation: "),
        (preprocessed(resize_mode="longest"), "preprocess_cfg.resize_mode: "),
    ],
)
def test_unsupported_configurations_are_refused(
    config: dict[str, Any], reason: str, weights: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(config))
    assert reason in refusal(str(bad), weights)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"embed_dim": 1e999}', "[" * 100000])
def test_broken_configuration_files_are_refused(text: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    assert "teacher.model" in refusal(str(bad), "openai")


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    config = write_teacher(tmp_path / "files", model_config(VIT))
    (tmp_path / "empty").mkdir()
    assert "must hold a checkpoint" in refusal(config.model, str(tmp_path / "empty"))


def test_a_directory_with_another_activation_is_refused(tmp_path: Path) -> None:
    config = write_teacher(tmp_path, model_config(VIT))
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_config(VIT, quick=True)})
    )
    assert "trained with QuickGELU" in refusal(config.model, str(tmp_path))
