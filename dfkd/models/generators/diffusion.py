"""The generator whose latents are sampled: a latent diffusion model in diffusers' layout.

    x_T    = sigma_T * noise                                         of the image's own seed
    x_t-1  = scheduler(UNet(x_t, t, states), t, x_t)                 `synthesis.steps` times
    image  = VAE decoder(x_0 / scaling factor)

This is what diffusers' `StableDiffusionPipeline` computes, and a test compares the two. But the
states are those of the teacher's own text tower (`dfkd.models.generators.text_tower`), and all
noise of an image comes from its own seed, so that it does not depend on its batch.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.config.bundled import CACHE, DIFFUSION, MINIATURE
from dfkd.config.manifest import Manifest
from dfkd.config.synthesis import GeneratorConfig
from dfkd.errors import ManifestError, WeightsError, one_line
from dfkd.models.generators.generator import Condition, TextInput, to_pixels
from dfkd.models.generators.text_tower import FIELD, REMEDY, TextEncoder
from dfkd.models.teacher import Teacher
from dfkd.models.weights.artifacts import FETCH, PUBLISHED_PIPELINES, cached
from dfkd.models.weights.reading import load_into, match, read_json, read_state_dict
from dfkd.utils.device import multiplies_bfloat16
from dfkd.utils.types import Precision

UNETS = ("UNet2DConditionModel",)
VAES = ("AutoencoderKL", "AutoencoderTiny", "VQModel")
SCHEDULERS = (
    "DDIMScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""Classes of diffusers that a folder may name. These schedulers draw from given generators."""

OTHER_CONDITIONS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim_type",
    "num_class_embeds",
)
"""Keys of a UNet that needs more than the hidden states of one text tower, as Stable Diffusion XL
does."""

FUSE = (
    "fuse it with diffusers: pipe.fuse_lora(); pipe.unload_lora_weights(); "
    "pipe.save_pretrained(FOLDER)"
)
"""Remedy for layers of a LoRA, which diffusers saves if they were not unloaded."""

ENCODING = ("encoder.", "quant_conv.")
"""Tensors of a VAE that only encode."""

MAX_SIZE, MAX_LAYERS = 10_000, 8
"""Bounds on the numbers in a configuration, and on those that count layers, blocks or entries.

The latter multiply; Stable Diffusion has at most 4 of each."""


class Diffusion:
    """UNet, VAE and scheduler of Stable Diffusion 1 or 2, or of a model distilled from one.

    Attributes:
        text: the hidden states that the UNet was trained on.
        unet, vae, scheduler: objects of diffusers; the networks are frozen, and with mixed
            precision their weights have been rounded in place.
        encoder: the text encoder, which the teacher's tower takes the place of.
        steps: sampling steps.
        guidance: scale of classifier-free guidance; 1 for none.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        scheduler: Any,
        encoder: TextEncoder,
        steps: int,
        guidance: float,
        precision: Precision = "float32",
    ) -> None:
        self.unet, self.vae, self.scheduler, self.encoder = unet, vae, scheduler, encoder
        self.steps, self.guidance = steps, guidance
        self.text: TextInput | None = encoder.input
        self.device = next(self.unet.parameters()).device
        # Computed here, because torch.compile cannot trace it.
        self._mixed = precision == "bfloat16" and multiplies_bfloat16(self.device)
        if self._mixed:
            _round_weights(unet, vae)
        # Some schedulers add noise at each step.
        self._noisy = "generator" in inspect.signature(self.scheduler.step).parameters
        # A consistency model takes the guidance scale as input, so it needs no second pass.
        self._scale_size: int | None = self.unet.config.time_cond_proj_dim
        self._guided = guidance > 1 and self._scale_size is None

    @classmethod
    def files(cls, config: GeneratorConfig, cache: str = CACHE) -> dict[str, Path]:
        """Configurations and weights of all parts; see `Generator.files`.

        Of the text encoder only the configuration changes a pixel.
        """
        folder = find_folder(config.weights, cache)
        files = {
            "unet/config": folder / "unet/config.json",
            "unet/weights": _weights(folder / "unet"),
            "vae/config": folder / "vae/config.json",
            "vae/weights": _weights(folder / "vae"),
            "scheduler": folder / "scheduler/scheduler_config.json",
            **TextEncoder.files(folder),
        }
        for path in files.values():
            if not path.is_file():
                rule = f"must hold {path.relative_to(folder)}"
                raise WeightsError(FIELD, rule, config.weights, REMEDY)
        return {f"{FIELD}/{part}": path for part, path in files.items()}

    @classmethod
    def of(cls, manifest: Manifest, device: torch.device, precision: Precision) -> "Diffusion":
        """See `Generator.of` and `read`."""
        steps, cache = manifest.synthesis.steps, manifest.cache
        return cls.read(manifest.generator, steps, device, precision, cache)

    @classmethod
    def read(
        cls,
        config: GeneratorConfig,
        steps: int,
        device: torch.device,
        precision: Precision = "float32",
        cache: str = CACHE,
    ) -> "Diffusion":
        """The model that `config` names.

        Raises:
            ManifestError: the scheduler cannot do so many steps.
            WeightsError: a file is missing, corrupt or hostile, or the parts do not fit.
        """
        files = cls.files(config, cache)
        folder = find_folder(config.weights, cache)
        encoder = TextEncoder.read(folder)
        scheduler = _scheduler(files[f"{FIELD}/scheduler"], steps)
        unet = _network("unet", UNETS, files, device)
        vae = _network("vae", VAES, files, device)
        _require_fitting(unet.config, vae.config, encoder, folder)
        return cls(unet, vae, scheduler, encoder, steps, config.guidance, precision)

    def require(self, teacher: Teacher, image_size: int) -> None:
        """Refuse a teacher whose text tower is not the pipeline's own; images are resized."""
        self.encoder.require(teacher)

    @torch.no_grad()
    def init_latents(
        self, seeds: Sequence[int], image_size: int, condition: Condition | None = None
    ) -> Tensor:
        """Sampled latents float32 [B, C, h, w]; each depends only on its own seed and prompt.

        Args:
            image_size: not used, because a UNet makes good images only at the size of its training.
            condition: of B prompts.
        """
        assert condition is not None  # noqa: S101 - `text` asks for one
        side = self.unet.config.sample_size
        shape = (self.unet.config.in_channels, side, side)
        # Each image has its own generator on the CPU, so its noise depends neither on the others of
        # its batch nor on the device.
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
        self.scheduler.set_timesteps(self.steps, device=self.device)
        latents: Tensor = noise.to(self.device) * self.scheduler.init_noise_sigma
        options = {"generator": draws} if self._noisy else {}
        for time in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(latents, time)
            output = self._predict(scaled, time, condition)
            latents = self.scheduler.step(output, time, latents, return_dict=False, **options)[0]
        return latents

    def _predict(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The UNet's output float32 [B, C, h, w], guided away from the empty text."""
        states = condition.prompts
        if self._guided:
            states = torch.cat([condition.empty.expand_as(states), states])
            latents = torch.cat([latents, latents])
        scale = None
        if self._scale_size is not None:
            scale = scale_embedding(self.guidance - 1, self._scale_size).to(self.device)
            scale = scale.expand(len(latents), -1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed):
            output: Tensor = self.unet(
                latents, time, encoder_hidden_states=states, timestep_cond=scale, return_dict=False
            )[0]
        if not self._guided:
            return output.float()
        empty, prompted = output.float().chunk(2)
        return empty + self.guidance * (prompted - empty)

    def decode(self, latent: Tensor, quantise: bool = True) -> Tensor:
        """Pixels float32 [B, 3, H, W] in [0, 1] of a latent [B, C, h, w].

        Args:
            quantise: not used, because the latents have no codes.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed):
            image = self.vae.decode(latent / self.vae.config.scaling_factor, return_dict=False)[0]
        return to_pixels(image.float())

    def constrain(self, latent: Tensor) -> Tensor:
        """The latent itself, because the VAE decodes any."""
        return latent


def _round_weights(*networks: nn.Module) -> None:
    """Round the weights of convolutions and linear layers to bfloat16, in place.

    Autocast would round them to the same numbers, but at each call: it keeps the rounded weights
    only of networks that are trained.
    """
    for network in networks:
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(torch.bfloat16)


def scale_embedding(scale: float, size: int) -> Tensor:
    """The guidance scale w as input of a consistency model, float32 [1, size].

    It is a sinusoidal embedding of 1000 w, written as in diffusers' `get_guidance_scale_embedding`
    so that it rounds alike.
    """
    half = size // 2
    rate = torch.log(torch.tensor(10000.0)) / (half - 1)
    angles = torch.tensor([[scale]]) * 1000.0 * torch.exp(torch.arange(half) * -rate)
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, size % 2))


def find_folder(value: str, cache: str = CACHE) -> Path:
    """The folder that `generator.weights` names.

    Raises:
        WeightsError: no such folder or name, or a file is not in the cache.
    """
    if value == MINIATURE:
        return DIFFUSION
    if artifacts := PUBLISHED_PIPELINES.get(value):
        for artifact in artifacts:
            cached(FIELD, value, artifact, cache)
        return Path(cache).expanduser() / value
    folder = Path(value).expanduser()
    if not folder.is_dir():
        names = ", ".join([MINIATURE, *PUBLISHED_PIPELINES])
        rule = f"must be an existing folder or a known diffusion model ({names})"
        raise WeightsError(FIELD, rule, value, f"check the path, or name one and run {FETCH}")
    return folder


def _diffusers() -> ModuleType:
    """The library, whose import takes a second, and which only this kind of generator needs."""
    import diffusers

    module: ModuleType = diffusers
    return module


def _weights(part: Path) -> Path:
    """The safetensors file of a network: the one with diffusers' usual name, or the only one."""
    usual = part / "diffusion_pytorch_model.safetensors"
    files = sorted(part.glob("*.safetensors"))
    return files[0] if len(files) == 1 else usual


def _configuration(path: Path, kinds: Sequence[str]) -> dict[str, Any]:
    """A configuration of one of the classes `kinds`, with bounded numbers.

    Raises:
        WeightsError: it is of another class, or a number is out of bounds.
    """
    tree = read_json(FIELD, path, REMEDY)
    if tree.get("_class_name") not in kinds:
        rule = f"must be one of {', '.join(kinds)}"
        field = f"{FIELD}: {path.parent.name}._class_name"
        raise WeightsError(field, rule, tree.get("_class_name"), "give another model")
    # A file of a few bytes must not ask for a network of any size.
    for key, number in _numbers(tree):
        limit = MAX_LAYERS if re.search("layers|blocks|length", key) else MAX_SIZE
        if abs(number) > limit:
            raise WeightsError(
                f"{FIELD}: {path.parent.name}.{key}", f"must be at most {limit}", number, REMEDY
            )
    return tree


def _numbers(tree: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in plain values with its key, and the length of each list."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _numbers(value, name)
    elif isinstance(tree, list):
        yield f"{key} (length)", len(tree)
        for value in tree:
            yield from _numbers(value, key)
    elif isinstance(tree, int | float):
        yield key, tree


def _network(
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
    if any("lora" in key for key in state):
        raise WeightsError(FIELD, "must not hold the layers of a LoRA", str(weights), FUSE)
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


def _scheduler(path: Path, steps: int) -> Any:
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
        raise ManifestError("synthesis.steps", rule, steps, "choose another number") from None
    return scheduler


def _from_configuration(path: Path, kinds: Sequence[str], device: str) -> Any:
    """The object of diffusers that a configuration describes, with its tensors on ``device``.

    Raises:
        WeightsError: the configuration is not one of ``kinds``, or diffusers refuses it.
    """
    tree = _configuration(path, kinds)
    # Outside the try, so that a broken diffusers is not blamed on the file.
    kind = getattr(_diffusers(), tree["_class_name"])
    try:
        with torch.device(device):
            return kind.from_config(tree)
    except Exception as error:  # a malformed configuration can raise anything in a constructor
        rule = f"must be buildable by diffusers ({one_line(error)})"
        raise WeightsError(FIELD, rule, str(path), REMEDY) from None


def _require_fitting(unet: Any, vae: Any, encoder: TextEncoder, folder: Path) -> None:
    """Raise `WeightsError` if the configurations of a folder's parts do not belong together."""
    width = encoder.shape.hidden_size
    if other := [key for key in OTHER_CONDITIONS if unet.get(key) is not None]:
        raise _foreign(
            folder, f"must have a UNet that one text tower conditions, and this one has {other[0]}"
        )
    # The decoder of a VQGAN starts at its codes.
    channels = vae.get("vq_embed_dim") or vae.latent_channels
    if not unet.in_channels == unet.out_channels == channels:
        raise _foreign(
            folder, "must have a UNet for text to image, with as many channels as the VAE has"
        )
    if unet.cross_attention_dim != width:
        raise _foreign(folder, f"must have a UNet for hidden states of width {width}")
    if not isinstance(unet.sample_size, int):
        raise _foreign(folder, "must have a UNet for square images of one size (sample_size)")


def _foreign(folder: Path, rule: str) -> WeightsError:
    """The error about a folder whose parts are intact but do not fit."""
    return WeightsError(FIELD, rule, str(folder), "give a Stable Diffusion 1 or 2")
