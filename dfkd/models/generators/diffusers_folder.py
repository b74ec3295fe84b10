"""A folder in diffusers' layout: its files, and the networks and the scheduler that they describe.

Configurations and weights come from strangers, so numbers are bounded, classes are listed, and
tensors must fit.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dfkd.config.paths import CACHE, DIFFUSION, MINIATURE, local_path
from dfkd.config.pipelines import PIPELINES
from dfkd.errors import ManifestError, WeightsError, one_line
from dfkd.models.weights.artifacts import FETCH, PIPELINE_FILES, cached
from dfkd.models.weights.reading import load_into, match, read_json, read_state_dict
from dfkd.utils.strict_json import numbers

FIELD = "generator.diffusers.weights"
"""The manifest key that errors name."""
REMEDY = "give an intact folder in diffusers' layout"

UNETS = ("UNet2DConditionModel",)
VAES = ("AutoencoderKL", "VQModel")
SCHEDULERS = (
    "DDIMScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""Classes of diffusers that a folder may name. These schedulers draw from given generators."""

OTHER_PARTS = ("text_encoder_2", "transformer")
"""Folders in those of other pipelines: a second text tower (Stable Diffusion XL and 3, FLUX), or a
transformer in the place of the UNet."""
OTHER_CONDITIONS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim_type",
    "num_class_embeds",
)
"""Keys of a UNet that needs more than the hidden states of one text tower, as Stable Diffusion XL
does."""

ENCODING = ("encoder.", "quant_conv.")
"""Tensors of a VAE that only encode."""

MAX_SIZE, MAX_LAYERS = 10_000, 8
"""Bounds on the numbers in a configuration, which size the tables of a scheduler, and on those that
count layers, blocks or entries: these multiply, and Stable Diffusion has at most 4 of each."""


def find_folder(value: str, cache: str = CACHE) -> Path:
    """The folder that `generator.diffusers.weights` names.

    Raises:
        WeightsError: no such folder or name, it is of another kind of pipeline, or a file is not in
            the cache.
    """
    if value == MINIATURE:
        return DIFFUSION
    if value in PIPELINES:
        for each in PIPELINE_FILES:
            cached(FIELD, value, f"{value}/{each}", cache)
        return local_path(cache) / value
    folder = local_path(value)
    if not folder.is_dir():
        rule = f"must be an existing folder or a known diffusion model ({', '.join(PIPELINES)})"
        raise WeightsError(FIELD, rule, value, f"check the path, or name one and run {FETCH}")
    if other := [part for part in OTHER_PARTS if (folder / part).is_dir()]:
        raise _foreign(folder, f"must have one text tower and a UNet, and this one has {other[0]}")
    return folder


def weights_file(part: Path, usual: str = "diffusion_pytorch_model.safetensors") -> Path:
    """The safetensors file of a network: the one with its usual name, or the only one."""
    files = sorted(part.glob("*.safetensors"))
    return files[0] if len(files) == 1 else part / usual


def read_network(
    part: str,
    kinds: Sequence[str],
    files: Mapping[str, Path],
    device: torch.device,
) -> Any:
    """The frozen UNet or VAE of a folder.

    Raises:
        WeightsError: a file is corrupt or hostile, or they do not fit each other.
    """
    config, weights = files[f"{FIELD}/{part}/config"], files[f"{FIELD}/{part}/weights"]
    # Shapes only, so that a mismatch costs no memory.
    network = _from_configuration(config, kinds, "meta")
    state = {_present_name(key): value for key, value in read_state_dict(FIELD, weights).items()}
    if part == "vae":
        # Images are only decoded, so the half that encodes them need not be there.
        network.encoder = network.quant_conv = None
        state = {key: value for key, value in state.items() if not key.startswith(ENCODING)}
    expected = network.state_dict()
    match(FIELD, weights, state, expected, REMEDY)
    # Buffers that no file holds would stay uninitialised; only blocks of other models have some.
    if len(expected) < len([*network.parameters(), *network.buffers()]):
        rule = "must be of Stable Diffusion's blocks"
        raise WeightsError(FIELD, rule, str(config), "give another model")
    network.to_empty(device=device)
    load_into(FIELD, weights, network, state)
    return network.eval().requires_grad_(False)


def _present_name(key: str) -> str:
    """A tensor's name in today's diffusers; old VAEs name the matrices of attention otherwise."""
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    old = r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)"
    return re.sub(old, lambda found: names[found[0]], key)


def read_scheduler(path: Path, steps: int) -> Any:
    """The scheduler of a folder.

    Raises:
        WeightsError: the configuration is none of a known scheduler.
        ManifestError: the scheduler cannot do so many steps.
    """
    scheduler = _from_configuration(path, SCHEDULERS, "cpu")
    try:
        scheduler.set_timesteps(steps)
    except Exception as error:  # each scheduler has its own checks
        kind = type(scheduler).__name__
        rule = f"must suit {kind} ({one_line(error)})"
        remedy = f"choose another number, or fix {path}"
        raise ManifestError("generator.diffusers.steps", rule, steps, remedy) from None
    # Some keys are read only when a step is taken, so a copy takes all of them.
    trial, sample = copy.deepcopy(scheduler), torch.zeros(1, 1, 1, 1)
    try:
        for time in trial.timesteps:
            trial.step(trial.scale_model_input(sample, time), time, sample)
    except Exception as error:
        rule = f"must describe a scheduler that can take steps ({one_line(error)})"
        raise WeightsError(FIELD, rule, str(path), REMEDY) from None
    return scheduler


def _from_configuration(path: Path, kinds: Sequence[str], device: str) -> Any:
    """The object of diffusers that a configuration describes, with its tensors on `device`.

    Raises:
        WeightsError: the configuration is not one of `kinds`, or of a UNet with other conditions
            than a text tower's, a number is out of bounds, or diffusers refuses it.
    """
    tree = read_json(FIELD, path, REMEDY)
    if tree.get("_class_name") not in kinds:
        rule = f"must be one of {', '.join(kinds)}"
        field = f"{FIELD}: {path.parent.name}._class_name"
        raise WeightsError(field, rule, tree.get("_class_name"), "give another model")
    # Before the bounds, which larger models exceed too.
    if other := [key for key in OTHER_CONDITIONS if tree.get(key) is not None]:
        raise _foreign(
            path.parent.parent,
            f"must have a UNet that one text tower conditions, and this one has {other[0]}",
        )
    # A file of a few bytes must not ask for a network of any size.
    for key, number in numbers(tree):
        limit = MAX_LAYERS if re.search("layers|blocks|length", key) else MAX_SIZE
        if abs(number) > limit:
            raise WeightsError(
                f"{FIELD}: {path.parent.name}.{key}", f"must be at most {limit}", number, REMEDY
            )
    # Outside the try, so that a broken diffusers is not blamed on the file; and here, because the
    # import takes a second, and only this kind of generator needs it.
    import diffusers

    kind = getattr(diffusers, tree["_class_name"])
    try:
        with torch.device(device):
            return kind.from_config(tree)
    except Exception as error:  # a malformed configuration can raise anything in a constructor
        rule = f"must be buildable by diffusers ({one_line(error)})"
        raise WeightsError(FIELD, rule, str(path), REMEDY) from None


def require_fitting(unet: Any, vae: Any, width: int, folder: Path) -> None:
    """Raise `WeightsError` if the configurations of a folder's parts do not belong together.

    Args:
        width: of the text encoder's hidden states.
    """
    # The decoder of a VQGAN starts at its codes.
    channels = vae.get("vq_embed_dim") or vae.latent_channels
    if not unet.in_channels == unet.out_channels == channels:
        raise _foreign(
            folder, "must have a UNet for text to image, with as many channels as the VAE has"
        )
    if unet.cross_attention_dim != width:
        raise _foreign(folder, f"must have a UNet for hidden states of width {width}")
    if type(unet.sample_size) is not int or unet.sample_size < 1:
        raise _foreign(folder, "must have a UNet for square images of one size (sample_size)")
    if type(vae.scaling_factor) not in (int, float) or not vae.scaling_factor > 0:
        raise _foreign(folder, "must have a VAE with a positive scaling_factor")


def _foreign(folder: Path, rule: str) -> WeightsError:
    """The error about a folder whose parts are intact but do not fit."""
    return WeightsError(FIELD, rule, str(folder), "give a Stable Diffusion 1 or 2")
