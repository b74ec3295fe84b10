"""The miniature's latent diffusion model: its training with the classes of diffusers, its images.

    y    = U^T (E(image) - m) / s    E: encoder of the miniature's VQGAN, U: axes of the most
                                     variance of its latents, m: their mean, s: a common scale
    y_t  = a_t y + b_t noise,  a_t^2 + b_t^2 = 1             t of 1,000 times
    loss = |UNet(y_t, t, states) - (a_t noise - b_t y)|^2    (Salimans and Ho, 2022: "v")

The latents of a VQGAN are redundant: seven components of the miniature's 64 channels have all of
the variance. With noise in all channels, an object would show through it at nearly every time, so
that the model would learn at few times only which objects there are.

The states are the hidden states of the miniature teacher's text tower for the image's caption, so a
pseudo-word of that teacher conditions the model like any other word. The result is a folder in
diffusers' layout, which `dfkd.models.generators.diffusion` reads like that of Stable Diffusion.
"""

import copy
import dataclasses
import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import UNet2DConditionModel, UniPCMultistepScheduler, VQModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.config.paths import MINIATURE
from dfkd.config.pipelines import PIPELINES
from dfkd.lab.miniature import validation
from dfkd.lab.miniature.captions import Captioner
from dfkd.lab.miniature.drawings import Batches, painted
from dfkd.lab.miniature.evaluation_set import OFFICIAL
from dfkd.lab.miniature.generator import Autoencoder
from dfkd.lab.miniature.looks import LookSampler, vocabulary
from dfkd.lab.miniature.recipe import DiffusionRecipe, GeneratorRecipe
from dfkd.lab.miniature.training import Resumable, cosine, move_average, rise
from dfkd.models.generators.diffusers_folder import ENCODING
from dfkd.models.generators.diffusion import Diffusion
from dfkd.models.generators.settings import Diffusers
from dfkd.models.generators.text_tower import Shape
from dfkd.models.teacher import Teacher
from dfkd.utils.pixels import to_bytes


class LatentSpace(nn.Module):
    """The principal components of latents; the buffers are `mean`, `axes` and `scale`.

    Args:
        channels: C, number of channels of the latents.
        components: k, number of principal components.
    """

    mean: Tensor
    """float32 [C]."""
    axes: Tensor
    """Orthonormal columns, float32 [C, k]."""
    scale: Tensor
    """Standard deviation of all components together, float32 []."""

    def __init__(self, channels: int, components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("axes", torch.eye(channels)[:, :components])
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Set the buffers by latents float32 [B, C, h, w]."""
        flat = latents.movedim(1, -1).flatten(0, -2)
        variances, axes = torch.linalg.eigh(torch.cov(flat.T))  # in ascending order
        count = self.axes.shape[1]
        self.mean.copy_(flat.mean(0))
        self.axes.copy_(axes[:, -count:].flip(1))
        self.scale.copy_(variances[-count:].mean().sqrt())

    def forward(self, latents: Tensor) -> Tensor:
        """The components [B, k, h, w] of latents [B, C, h, w]."""
        centred = latents - self.mean.view(-1, 1, 1)
        return torch.einsum("bchw,ck->bkhw", centred, self.axes) / self.scale

    def decoder_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a VQGAN that decodes components times `scale` instead of latents.

        Args:
            state: official weights. The codebook is turned into the axes, and the convolution after
                it turns back.
        """
        codes, weight = state["quantize.embedding.weight"], state["post_quant_conv.weight"]
        matrix = weight.flatten(1)
        return state | {
            "quantize.embedding.weight": (codes - self.mean) @ self.axes,
            "post_quant_conv.weight": (matrix @ self.axes)[:, :, None, None],
            "post_quant_conv.bias": state["post_quant_conv.bias"] + matrix @ self.mean,
        }


_OWN_NAME = 0.7
"""Share of captions that use the drawing's own name at the end."""
_EMPTY = 0.1
"""Share of captions that are left empty, from which classifier-free guidance learns what an image
without a text is."""
_SPACE_BATCHES, _SPACE_SHARE = 4, 0.35
"""Batches by whose latents the principal components are found, and their share of drawings in one
ink in the default look: whatever the recipe has, so that a training can go on from another's.
"""
_LAST_RATE = 0.05
"""The learning rate ends at this share of its maximum."""
_VQ_NAMES = (
    (r"mid\.attn_1\.norm\.", r"mid_block.attentions.0.group_norm."),
    (r"mid\.attn_1\.proj_out\.", r"mid_block.attentions.0.to_out.0."),
    (r"mid\.attn_1\.(q|k|v)\.", r"mid_block.attentions.0.to_\1."),
    (r"down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"down\.(\d+)\.block\.", r"down_blocks.\1.resnets."),
    (r"up\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
    (r"up\.(\d+)\.block\.", r"up_blocks.\1.resnets."),
    (r"nin_shortcut", r"conv_shortcut"),
    (r"norm_out", r"conv_norm_out"),
)
"""taming-transformers' names of an autoencoder's parts, and diffusers'."""


def unet(recipe: DiffusionRecipe, vq: GeneratorRecipe, text_width: int) -> Any:
    """The untrained UNet, with weights from torch's global generator.

    Args:
        text_width: width of the teacher's hidden states.
    """
    down = len(vq.channel_multipliers) - 1
    return UNet2DConditionModel(
        sample_size=64 >> down,
        in_channels=recipe.components,
        out_channels=recipe.components,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        # Texts are attended to at full size and in the middle; between them it would cost more
        # than it gains.
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=[channels // 64 for channels in recipe.channels],
    )


def scheduler() -> Any:
    """The noise of each time, and the sampling steps of UniPC (Zhao et al., 2023).

    In a trial, 8 of its steps gave images as good as 12 of DDIM's.
    """
    return UniPCMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",  # few steps must begin at pure noise
    )


def autoencoder(recipe: GeneratorRecipe, network: Autoencoder, space: LatentSpace) -> Any:
    """The decoding half of the miniature's VQGAN as an object of diffusers.

    diffusers' encoder cannot have the shape of a VQGAN's without residual blocks.

    Args:
        space: of the UNet; the object decodes its components instead of latents.
    """
    levels = len(recipe.channel_multipliers)
    model: Any = VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=[recipe.channels * factor for factor in recipe.channel_multipliers],
        layers_per_block=recipe.residual_blocks,
        latent_channels=recipe.latent_channels,
        vq_embed_dim=space.axes.shape[1],
        num_vq_embeddings=recipe.codes,
        sample_size=64,
        scaling_factor=1 / float(space.scale),
    )
    model.encoder = model.quant_conv = None
    state = {}
    for official, value in space.decoder_weights(network.official()).items():
        if official.startswith(ENCODING):
            continue
        key = official
        for pattern, name in _VQ_NAMES:
            key = re.sub(rf"(?<=\.){pattern}", name, key)
        # taming counts residual blocks of the middle from 1, levels of the decoder from the end.
        key = re.sub(r"mid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}", key)
        key = re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", key)
        state[key] = value
    for key, expected in model.state_dict().items():
        # The attention's 1 x 1 convolutions are matrices there.
        state[key] = state[key].float().reshape(expected.shape)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


class DiffusionTrainer(Resumable):
    """Trains the UNet; `run` resumes from the last checkpoint in `folder`.

    Args:
        batches: their first sampling probabilities are used at all steps.
        vqgan: the exported generator, of which `vq` is the recipe.
        teacher: the exported teacher.
    """

    parts = ("space", "network", "average", "optimizer")
    saved = ("step", "seconds", "curve", "first", "validations")
    recipe: DiffusionRecipe

    def __init__(
        self,
        recipe: DiffusionRecipe,
        vq: GeneratorRecipe,
        batches: Batches,
        vqgan: Autoencoder,
        teacher: Teacher,
        captioner: Captioner,
        folder: Path,
        seed: int,
    ) -> None:
        self.recipe, self.vqgan, self.teacher, self.captioner = recipe, vqgan, teacher, captioner
        self.batches, self.path = batches, folder / "diffusion.pt"
        # Of batches with all looks, as the first ones show black on white alone.
        steps = range(recipe.easy_steps, recipe.easy_steps + _SPACE_BATCHES)
        self.space = LatentSpace(vq.latent_channels, recipe.components)
        self.space.fit(torch.cat([self.batch(step, _SPACE_SHARE)[0] for step in steps]))
        torch.manual_seed(seed)
        self.network: Any = unet(recipe, vq, teacher.token_table.shape[1])
        if recipe.start:
            start = Path(recipe.start)
            weights = load_file(start / "unet/diffusion_pytorch_model.safetensors")
            self.network.load_state_dict(weights)
            earlier = json.loads((start / "scores.json").read_text("utf-8"))
            self.step, self.seconds = earlier["steps"], 3600 * earlier["hours"]
        self.first = self.step
        """The 0-based step with which this training begins."""
        self.average: Any = copy.deepcopy(self.network).eval().requires_grad_(False)
        """The averaged UNet, in evaluation mode."""
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), weight_decay=0.01, betas=(0.9, 0.99), fused=True
        )
        self.alphas = scheduler().alphas_cumprod
        self.losses: list[float] = []
        """The losses since the last checkpoint."""
        self.curve: list[tuple[int, float]] = []
        """Step and mean loss since the last checkpoint, at each checkpoint."""
        self.validations: list[dict[str, Any]] = []
        """What `validation.measure` returned, with the number of images before it."""

    def save(self) -> None:
        """See `Resumable.save`; adds a point to the curve."""
        self.curve.append((self.step, round(statistics.fmean(self.losses), 4)))
        self.losses.clear()
        super().save()

    def scores(self) -> dict[str, Any]:
        """The length of the training, and its curve, for `scores.json`."""
        return super().scores() | {"curve": self.curve, "validations": self.validations}

    @torch.no_grad()
    def batch(self, step: int, default_share: float) -> tuple[Tensor, Tensor, torch.Generator]:
        """Latents float32 [B, C, 8, 8], hidden states [B, L, D], and the generator of a step.

        They depend on the seed and the arguments alone.
        """
        # Looks are easier to learn than objects. With all looks from the start, a trial of 1,000
        # steps knew colours and grounds, and hardly any object.
        strength = min(1.0, step / self.recipe.easy_steps)
        # All names are equally likely at each step.
        rows, rng = self.batches.draw(step, strength=0)
        gen = torch.Generator().manual_seed(int(rng.integers(2**62)))
        sampler = LookSampler(gen)
        default = 1 - strength * (1 - default_share)
        looks = [sampler.draw(row.colour, default) for row in rows]
        images = painted(self.batches.cache, rows, looks, gen, self.recipe.pose)
        captions = [
            self.captioner.caption(row, look, rng, easy=rng.random() > strength * (1 - _OWN_NAME))
            for row, look in zip(rows, looks, strict=True)
        ]
        words = [caption.words if rng.random() > _EMPTY else [] for caption in captions]
        length = self.teacher.context_length
        ids = self.captioner.tokens(words, length)
        # Padded to the whole context, as every text is that conditions the model later.
        padded = F.pad(ids, (0, length - ids.shape[1]))
        states = self.teacher.hidden_states(self.teacher.embed_tokens(padded), self.layers)
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.vqgan.encode(images * 2 - 1)
        return latents.float(), states.float(), gen

    @property
    def layers(self) -> int:
        """Number of blocks of the teacher's text tower."""
        return len(self.teacher.text.transformer.resblocks)

    def update(self) -> str:
        """One step of the optimizer and the average; returns the mean of the last losses."""
        latents, states, gen = self.batch(self.step, self.recipe.default_share)
        clean = self.space(latents)
        noise = torch.randn(clean.shape, generator=gen)
        # One time of each of B equal intervals: the loss varies less than with free times.
        strata = torch.arange(len(clean)) + torch.rand(len(clean), generator=gen)
        # 63 and a number just below 1 are 64 in float32.
        times = (strata / len(clean) * len(self.alphas)).long().clamp_max(len(self.alphas) - 1)
        signal = self.alphas[times].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - self.alphas[times]).sqrt().view(-1, 1, 1, 1)
        for group in self.optimizer.param_groups:
            falling = min(self.recipe.falling_steps, self.recipe.steps)
            fallen = max(0, self.step - (self.recipe.steps - falling))
            fall = max(_LAST_RATE, cosine(fallen, falling))
            factor = rise(self.step - self.first, self.recipe.rising_steps) * fall
            group["lr"] = self.recipe.learning_rate * factor
        with torch.autocast("cpu", torch.bfloat16):
            noisy = signal * clean + sigma * noise
            velocity = self.network(noisy, times, states, return_dict=False)[0]
        loss = F.mse_loss(velocity.float(), signal * noise - sigma * clean)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        move_average(self.average, self.network, self.recipe.ema, self.step)
        self.losses.append(float(loss.detach()))
        return f"loss {statistics.fmean(self.losses[-50:]):.4f}"


def write_configurations(folder: Path, network: Any, vae: Any, encoder: Shape) -> None:
    """Write the configurations of all parts in diffusers' layout."""
    network.save_config(folder / "unet")
    vae.save_config(folder / "vae")
    scheduler().save_config(folder / "scheduler")
    # Texts are padded with token 0, whose text is "!" in CLIP's vocabulary.
    for name, content in (
        ("text_encoder/config.json", dataclasses.asdict(encoder)),
        ("tokenizer/tokenizer_config.json", {"pad_token": "!"}),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


_OWN = PIPELINES[MINIATURE]
"""Sampling steps and guidance scale of the samples."""
_COUNT = 8
"""Images of each class without and with styles."""


@torch.no_grad()
def sample_scores(trainer: DiffusionTrainer, folder: Path) -> dict[str, Any]:
    """Scores of the model that was exported to `folder`; writes `samples.png` there.

    Returns:
        Plain values. `teacher` has the share, 0-1, of images whose class the teacher names: of
        the `plain` class prompts, and of `styled` ones.
    """
    # The half-precision values that its users get.
    own = Diffusers(weights=str(folder), guidance=_OWN.guidance, steps=_OWN.steps)
    model = Diffusion.load(own, torch.device("cpu"))
    teacher = trainer.teacher
    texts = teacher.encode_text([f"A {name}" for name in OFFICIAL])
    words = [word for word in vocabulary() if not word.endswith(" ground")]
    styles = [words[i * len(words) // _COUNT] for i in range(_COUNT)]
    named: dict[str, list[float]] = {"plain": [], "styled": []}
    strips = []
    for i, name in enumerate(OFFICIAL):
        images = {
            "plain": validation.sample(model, teacher, [f"A {name}"] * _COUNT),
            "styled": validation.sample(
                model, teacher, [f"{name} in the style of {s}" for s in styles]
            ),
        }
        for kind, made in images.items():
            nearest = (teacher.encode_image(made) @ texts.T).argmax(1)
            named[kind].append(float((nearest == i).float().mean()))
        strips.append(strip(torch.cat(list(images.values()))))
    Image.fromarray(np.concatenate(strips)).save(folder / "samples.png", optimize=True)
    return {
        "parameters": sum(weight.numel() for weight in trainer.network.parameters()),
        "names": sorted({row.concept for row in trainer.batches.rows}),
        **trainer.scores(),
        "images": 2 * _COUNT * len(OFFICIAL),
        "sampling_steps": _OWN.steps,
        "guidance": _OWN.guidance,
        "teacher": {kind: round(statistics.fmean(shares), 4) for kind, shares in named.items()},
    }


def strip(images: Tensor) -> npt.NDArray[np.uint8]:
    """Images [N, 3, 64, 64] side by side, each in a grey frame: uint8 [66, 66 N, 3]."""
    framed: list[npt.NDArray[np.uint8]] = [
        np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=210)
        for image in to_bytes(images).numpy()
    ]
    return np.concatenate(framed, axis=1)
