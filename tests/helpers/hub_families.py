"""SigLIP, SigLIP 2 and CLIPA, scaled down: what open_clip ships of them, with a tokenizer each.

The tokenizers are of the kinds of the published ones: T5's Unigram, Gemma's BPE with bytes, and
BERT's WordPiece.
"""

import json
import string
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from dfkd.config.synthesis import TeacherConfig
from tests.helpers.tiny_models import random_model

PUBLISHED = {
    "siglip": ("ViT-B-16-SigLIP", "webli"),
    "siglip-i18n": ("ViT-SO400M-16-SigLIP-i18n-256", "webli"),
    "siglip2": ("ViT-gopt-16-SigLIP2-256", "webli"),
    "clipa": ("ViT-H-14-CLIPA", "datacomp1b"),
}
"""A model and a tag of open_clip of each family. The text tower of `siglip-i18n` projects nothing;
CLIPA's image tower is open_clip's own, the others are timm's."""

WORDS = ["a", "photo", "of", "this", "is", "dog", "cat", "car", "the", "and", "hot", "crane"]


def write_tokenizer(path: Path, family: str) -> int:
    """A small tokenizer of the family's kind; returns how many tokens the text tower knows."""
    letters = list(string.ascii_lowercase + string.digits)
    if family == "clipa":
        special, end = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[SEP]"
        tokens = [*special, *WORDS, *letters, *(f"##{letter}" for letter in letters), "!", "."]
        ids = {token: number for number, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        template = "[CLS] $A [SEP]"
    elif family == "siglip2":
        special, end = ["<pad>", "<eos>", "<bos>", "<unk>"], "<eos>"
        tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
        merges = [("▁", "a"), ("d", "o"), ("do", "g"), ("▁", "dog")]
        tokens += [left + right for left, right in merges]
        ids = {token: number for number, token in enumerate(tokens)}
        tokenizer = Tokenizer(
            models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        template = "$A <eos>"
    else:
        special, end = ["<pad>", "</s>", "<unk>"], "</s>"
        tokens = [*special, "▁", *letters, *(f"▁{word}" for word in WORDS)]
        scores = [0.0] * 4 + [-5.0] * len(letters) + [-2.0] * len(WORDS)
        # T5's last tokens have ids beyond those that the text tower knows.
        extra = "<extra_id_0>"
        pieces = [*zip(tokens, scores, strict=True), (extra, 0.0)]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
        spaces = normalizers.Replace(Regex(" {2,}"), "▁")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(left=False), spaces])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
        template = "$A </s>"
        special = [*special, extra]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    marks = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", end) if token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return len(tokens)


def family_config(family: str, vocabulary: int) -> dict[str, Any]:
    """The configuration that open_clip ships, with small towers; in the form of a hub's file."""
    model, tag = PUBLISHED[family]
    config = open_clip.get_model_config(model)
    text = {"context_length": 12, "vocab_size": vocabulary, "width": 96, "heads": 2, "layers": 2}
    config["text_cfg"] |= text
    config["text_cfg"].pop("mlp_ratio", None)
    config["embed_dim"] = 96
    if family == "clipa":
        config["vision_cfg"] |= {"image_size": 32, "width": 32, "head_width": 16, "layers": 2}
        config["vision_cfg"].pop("mlp_ratio", None)
        config["vision_cfg"]["patch_size"] = 8
    else:  # timm's smallest with the same pooling, by attention
        config["vision_cfg"] |= {"image_size": 160, "timm_model_name": "test_vit3"}
    stated = get_pretrained_cfg(model, tag)
    keys = ("mean", "std", "interpolation", "resize_mode")
    return {"model_cfg": config, "preprocess_cfg": {key: stated[key] for key in keys}}


def write_family(folder: Path, family: str) -> TeacherConfig:
    """A folder as a hub has it: configuration, random weights and tokenizer."""
    vocabulary = write_tokenizer(folder / "tokenizer.json", family)
    tree = family_config(family, vocabulary)
    (folder / "open_clip_config.json").write_text(json.dumps(tree))
    state = random_model(tree["model_cfg"]).state_dict()
    save_file(state, folder / "open_clip_model.safetensors")
    return TeacherConfig(model=str(folder), weights=str(folder))
