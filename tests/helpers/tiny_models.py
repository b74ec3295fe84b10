"""Tiny models of every supported kind, with random weights, in the published file formats."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from open_clip import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from torch import nn

from dfkd.config.synthesis import GeneratorConfig, TeacherConfig
from dfkd.models.generators.settings import Vqgan
from dfkd.models.teacher import Teacher
from dfkd.utils.device import seeded

TEACHER = TeacherConfig(model="miniature", weights="miniature")
VQGAN = Vqgan(config="miniature", weights="miniature")
GENERATOR = GeneratorConfig(kind="vqgan", kinds={"vqgan": VQGAN})

VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "image_size": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TEXTS = ["a dog", "a photo of two cats, sleeping", "!", "x " * 40]
"""Texts of different lengths; the last one exceeds the context."""


def model_config(
    vision: dict[str, Any] = VIT, custom: bool = False, quick: bool = False, **text: Any
) -> dict[str, Any]:
    config: dict[str, Any] = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {**TEXT, **text}}
    return (
        config | ({"custom_text": True} if custom else {}) | ({"quick_gelu": True} if quick else {})
    )


def random_model(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """The open_clip model itself, built without any code of the library."""
    plain = {key: value for key, value in config.items() if key != "custom_text"}
    text = {key: value for key, value in config["text_cfg"].items() if key != "tokenizer_kwargs"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = CustomTextCLIP if config.get("custom_text") else CLIP
        model = kind(**(plain | {"text_cfg": text}))
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.02 * torch.randn(value.shape))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.abs_().add_(0.5)
    return model.eval()


def write_teacher(folder: Path, config: dict[str, Any]) -> TeacherConfig:
    """A configuration and its weights as files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(config))
    save_file(random_model(config).state_dict(), folder / "model.safetensors")
    return TeacherConfig(
        model=str(folder / "model.json"), weights=str(folder / "model.safetensors")
    )


def load_teacher(folder: Path, config: dict[str, Any]) -> Teacher:
    return Teacher.load(write_teacher(folder, config), torch.device("cpu"))


F16 = {"ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "resolution": 256}
F8 = {"ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "resolution": 64}


def official_yaml(
    codes: int = 64, width: int = 32, latent: int = 16, **ddconfig: Any
) -> dict[str, Any]:
    """A `model.yaml` with every key of the published ones."""
    shape = {
        "double_z": False, "z_channels": latent, "in_channels": 3, "out_ch": 3, "ch": width,
        "dropout": 0.0, **F8, **ddconfig,
    }  # fmt: skip
    loss = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {}}
    params = {"embed_dim": latent, "n_embed": codes, "ddconfig": shape, "lossconfig": loss}
    target = "taming.models.vqgan.VQModel"
    return {"model": {"base_learning_rate": 4.5e-06, "target": target, "params": params}}


def official_state(tree: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under a published checkpoint's names, made by taming's own modules."""
    from taming.modules.diffusionmodules.model import Decoder, Encoder
    from taming.modules.vqvae.quantize import VectorQuantizer

    params = tree["model"]["params"]
    shape, latent = params["ddconfig"], params["embed_dim"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        whole = nn.ModuleDict(
            {
                "encoder": Encoder(**shape),
                "decoder": Decoder(**shape),
                "quantize": VectorQuantizer(params["n_embed"], latent, 0.25),
                "quant_conv": nn.Conv2d(shape["z_channels"], latent, 1),
                "post_quant_conv": nn.Conv2d(latent, shape["z_channels"], 1),
                "loss": nn.ModuleDict({"discriminator": nn.Conv2d(3, 4, 4)}),
            }
        )
        whole["quantize"].embedding.weight.data.normal_()
    return whole.state_dict()


def write_published(cache: Path, tree: dict[str, Any]) -> None:
    """A VQGAN under the names that a cache has for the published one with as many codes."""
    files = write_generator(cache, tree)
    name = f"vqgan-imagenet-f16-{tree['model']['params']['n_embed']}"
    Path(files.config).rename(cache / f"{name}.yaml")
    Path(files.weights).rename(cache / f"{name}.ckpt")


def write_generator(folder: Path, tree: dict[str, Any], **extra: Any) -> Vqgan:
    """An official checkpoint: `model.yaml` and `last.ckpt`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump(tree))
    checkpoint = {"epoch": 3, "global_step": 10, "state_dict": official_state(tree), **extra}
    torch.save(checkpoint, folder / "last.ckpt")
    return Vqgan(config=str(folder / "model.yaml"), weights=str(folder / "last.ckpt"))


def write_backbone(path: Path, name: str = "test_resnet") -> Path:
    """Random weights of a model of timm, the same each time, that a backbone may start from."""
    with seeded(0):
        save_file(timm.create_model(name, pretrained=False).state_dict(), path)
    return path
