"""Whether the teacher's text tower is the one that a diffusion model was trained on.

A pseudo-word is a token embedding of the teacher, so no text can stand for it: the hidden states
that condition the model must come from the teacher itself. They mean something to the model only if
its own text encoder is the same network. open_clip and transformers name its tensors differently.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from dfkd.errors import ManifestError, WeightsError
from dfkd.models.generators.diffusers_folder import FIELD, REMEDY, weights_file
from dfkd.models.generators.generator import TextInput
from dfkd.models.teacher import Teacher
from dfkd.models.weights.reading import read_json, read_state_dict
from dfkd.utils.strict_json import first_problem

TOLERANCE = 0.01
"""Largest difference of two equal tensors, relative to their norm; rounding to bfloat16 gives at
most 0.004, and two networks that were trained apart differ by more than 1."""

PADDING = {"<|endoftext|>": True, "!": False}
"""Whether the padding of a CLIP tokenizer is the end token; `!` is token 0."""


@checked(frozen=True, config=ConfigDict(extra="ignore", strict=True))
class Shape:
    """`text_encoder/config.json`: the shape of a CLIPTextModel, with transformers' defaults."""

    hidden_size: int = 512
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    max_position_embeddings: int = 77
    vocab_size: int = 49408
    num_hidden_layers: int = 12


@dataclass(frozen=True)
class TextEncoder:
    """The text encoder of a diffusion model, which the teacher's text tower replaces."""

    shape: Shape
    input: TextInput
    """The hidden states that the diffusion model was trained on."""
    weights: Path | None
    """The encoder's weights; without them only shapes can be compared."""

    @classmethod
    def files(cls, folder: Path) -> dict[str, Path]:
        """The files that `read` reads, by their part in a fingerprint."""
        special = folder / "tokenizer/special_tokens_map.json"  # takes precedence over the other
        tokenizer = special if special.is_file() else folder / "tokenizer/tokenizer_config.json"
        return {"text_encoder": folder / "text_encoder/config.json", "tokenizer": tokenizer}

    @classmethod
    def read(cls, folder: Path) -> "TextEncoder":
        """The text encoder of a folder in diffusers' layout.

        Raises:
            WeightsError: a configuration is missing or malformed.
        """
        config, tokenizer = cls.files(folder).values()
        try:
            tree = read_json(FIELD, config, REMEDY)
            known = tree.keys() & {field.name for field in fields(Shape)}
            shape = Shape(**{name: tree[name] for name in known})
        except ValidationError as error:
            field, rule, value = first_problem(error)
            raise WeightsError(f"{FIELD}: text_encoder.{field}", rule, value, REMEDY) from None
        pad = read_json(FIELD, tokenizer, REMEDY).get("pad_token")
        # Padding matters, because a diffusion model attends to the states of all tokens.
        token = pad.get("content") if isinstance(pad, dict) else pad
        if not isinstance(token, str) or token not in PADDING:
            rule = f"must be {' or '.join(PADDING)}"
            raise WeightsError(f"{FIELD}: tokenizer.pad_token", rule, token, REMEDY)
        weights = weights_file(folder / "text_encoder", "model.safetensors")
        text_input = TextInput(shape.num_hidden_layers, PADDING[token])
        return cls(shape, text_input, weights if weights.is_file() else None)

    def require(self, teacher: Teacher) -> None:
        """Check that the teacher's text tower is this encoder.

        Raises:
            ManifestError: it is another one; the text names the difference.
        """
        difference = _shape_difference(teacher, self.shape)
        if not difference and self.weights:
            state = read_state_dict(FIELD, self.weights)
            difference = _weight_difference(teacher, self.shape, state)
        if difference:
            raise ManifestError(
                "teacher.model",
                "must have the text tower that generator.diffusers.weights was trained on "
                f"({difference})",
                teacher.name,
                "choose the CLIP that the diffusion model names as its text encoder",
            )


def _shape_difference(teacher: Teacher, shape: Shape) -> str:
    """The first difference between the shapes of both; empty without one."""
    blocks = list(teacher.text.transformer.resblocks)
    if not teacher.causal or not blocks or not isinstance(blocks[0], ResidualAttentionBlock):
        return "the teacher's is not that of a CLIP"
    # The folder of Stable Diffusion 2 has one block fewer than its CLIP, because the model was
    # trained on the states before the last block.
    depth = shape.num_hidden_layers if shape.num_hidden_layers == len(blocks) - 1 else len(blocks)
    own = shape_of(teacher, depth)
    for name, needed in asdict(shape).items():
        if getattr(own, name) != needed:
            return f"{name} is {getattr(own, name)} there and {needed} here"
    return ""


def shape_of(teacher: Teacher, layers: int) -> Shape:
    """The shape of a CLIP's text tower, with its first `layers` blocks."""
    block: Any = teacher.text.transformer.resblocks[0]
    return Shape(
        hidden_size=teacher.token_table.shape[1],
        num_attention_heads=block.attn.num_heads,
        hidden_act="quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu",
        max_position_embeddings=teacher.context_length,
        vocab_size=len(teacher.token_table),
        num_hidden_layers=layers,
    )


def _weight_difference(teacher: Teacher, shape: Shape, state: dict[str, Tensor]) -> str:
    """The first tensor of a text encoder that differs from the teacher's; empty without one."""
    theirs = {key.removeprefix("text_model."): value for key, value in state.items()}
    for name, own in as_clip_text_model(teacher.text, shape.num_hidden_layers).items():
        if name not in theirs or theirs[name].shape != own.shape:
            return f"its text_encoder has no {name} of shape {tuple(own.shape)}"
        # The bias of the keys adds the same to all scores of a query, which the softmax ignores. So
        # it is hardly trained, and float16 may have lost its small numbers.
        if name.endswith(".k_proj.bias"):
            continue
        expected = own.float().cpu()
        apart, norm = (
            torch.linalg.vector_norm(each) for each in (theirs[name].float() - expected, expected)
        )
        # Not `apart > ...`, which is false for NaN. Biases of zero have a norm of zero.
        if not apart <= TOLERANCE * norm:
            return f"{name} differs by {float(apart / norm):.0%} of its norm"
    return ""


def as_clip_text_model(text: Any, layers: int) -> dict[str, Tensor]:
    """The tensors of an open_clip text tower, by transformers' names in a CLIPTextModel."""
    tensors = {
        "embeddings.token_embedding.weight": text.token_embedding.weight,
        "embeddings.position_embedding.weight": text.positional_embedding,
    }
    modules = {"final_layer_norm": text.ln_final}
    for number, block in enumerate(text.transformer.resblocks[:layers]):
        layer = f"encoder.layers.{number}"
        modules[f"{layer}.layer_norm1"] = block.ln_1
        modules[f"{layer}.layer_norm2"] = block.ln_2
        modules[f"{layer}.mlp.fc1"] = block.mlp.c_fc
        modules[f"{layer}.mlp.fc2"] = block.mlp.c_proj
        modules[f"{layer}.self_attn.out_proj"] = block.attn.out_proj
        # open_clip has the projections to queries, keys and values as one matrix.
        weights, biases = (
            getattr(block.attn, f"in_proj_{kind}").chunk(3) for kind in ("weight", "bias")
        )
        for letter, weight, bias in zip("qkv", weights, biases, strict=True):
            tensors[f"{layer}.self_attn.{letter}_proj.weight"] = weight
            tensors[f"{layer}.self_attn.{letter}_proj.bias"] = bias
    for name, module in modules.items():
        tensors |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return tensors
