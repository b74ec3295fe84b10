"""The parts of a labeller or teacher: its open_clip configuration, its weights and its tokenizer.

open_clip's global registry of configurations is never changed, so two teachers in one process
cannot replace each other's.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip import CLIP, CustomTextCLIP
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.pretrained import get_pretrained_cfg
from torch import Tensor, nn

from dfkd.config.paths import CACHE, MINIATURE, TEACHER_CONFIG, TEACHER_WEIGHTS, local_path
from dfkd.errors import ManifestError, WeightsError, one_line
from dfkd.models.teacher_checks import checked_preprocess, is_config, refuse_unsupported
from dfkd.models.tokenizer_file import TOKENIZER, TokenizerFile
from dfkd.models.weights.artifacts import FETCH, hub_id
from dfkd.models.weights.reading import (
    existing_file,
    match,
    read_json,
    read_state_dict,
)

HUB = "hub"
"""Folder of the cache for the hub's client."""
CONFIG = "open_clip_config.json"

_CHECKPOINTS = ("*.safetensors", "*.bin", "*.pth", "*.pt")


@dataclass(frozen=True)
class Architecture:
    """An open_clip model without its weights."""

    name: str
    """`teacher.model` of the manifest."""
    model: dict[str, Any]
    """open_clip's `model_cfg`."""
    preprocess: dict[str, Any]
    """open_clip's `preprocess_cfg`, possibly empty."""
    path: Path | None
    """The configuration file, or None for one that open_clip ships."""

    @property
    def quick_gelu(self) -> bool:
        """Whether the towers use the activation that OpenAI's weights were trained with."""
        return bool(self.model.get("quick_gelu", False))


@dataclass(frozen=True)
class Source:
    """A weight file and the known facts about its training."""

    path: Path
    preprocess: dict[str, Any]
    """open_clip's `preprocess_cfg`; empty if unknown."""
    quick_gelu: bool | None
    """Whether it was trained with QuickGELU; None if unknown."""
    config: Path | None = None
    """The configuration beside the weights that states these facts, if there is one."""


def read_architecture(model: str) -> Architecture:
    """The architecture that `teacher.model` names.

    Args:
        model: an open_clip name, a JSON file, a directory holding `open_clip_config.json`, or
            `miniature`.

    Raises:
        ManifestError: the architecture is unknown or unreadable, or has a tower that this package
            cannot use.
    """
    given = local_path(model)
    path: Path | None = None
    if model == MINIATURE:
        path = TEACHER_CONFIG
    elif given.is_dir():
        path = given / CONFIG
    elif model.endswith(".json"):
        path = given
    # open_clip's own files have the configuration at the top level, those of a hub under a key.
    remedy = "give an open_clip configuration file"
    tree = _shipped(model) if path is None else read_json("teacher.model", path, remedy)
    config = tree.get("model_cfg", tree)
    preprocess = tree.get("preprocess_cfg", {})
    if not is_config(config):
        raise ManifestError(
            "teacher.model",
            "must be an open_clip model configuration (embed_dim, vision_cfg, text_cfg)",
            model,
            "give another file or the name of an open_clip architecture",
        )
    refuse_unsupported(model, config)
    return Architecture(model, config, checked_preprocess(model, preprocess), path)


def find_weights(weights: str, architecture: Architecture, cache: str = CACHE) -> Source:
    """The weight file that `teacher.weights` names; the file of an open_clip tag is in the cache.

    Raises:
        WeightsError: no such tag, file or directory, the file is not in the cache, or its weights
            were trained with another activation than the architecture's.
    """
    given = local_path(weights)
    if weights == MINIATURE:
        source = Source(existing_file("teacher.weights", TEACHER_WEIGHTS), {}, None)
    # Before folders, as `dfkd fetch` does; `./openai` still names a folder.
    elif tag := get_pretrained_cfg(architecture.name, weights):
        quick_gelu = bool(tag.get("quick_gelu"))
        require_activation(weights, quick_gelu, architecture)  # before the file is looked for
        # Without the network, which the nodes of a cluster need not have, and whose absence the
        # hub's client notices only after minutes of retries.
        repository, files = hub_files(tag)
        tried = (
            try_to_load_from_cache(repository, each, local_path(cache) / HUB) for each in files
        )
        found = next((Path(path) for path in tried if isinstance(path, str)), None)
        if found is None:
            rule = f"needs {hub_id(tag)}, which is not in the cache {cache}"
            raise WeightsError("teacher.weights", rule, weights, f"run {FETCH}")
        source = Source(found, tag, quick_gelu)
    elif given.is_dir():
        checkpoints = [path for pattern in _CHECKPOINTS for path in sorted(given.glob(pattern))]
        if not checkpoints:
            rule = f"must hold a checkpoint ({', '.join(_CHECKPOINTS)})"
            remedy = "give the path of the file itself"
            raise WeightsError("teacher.weights", rule, str(given), remedy)
        # A folder of a model hub may also hold the weights in the format of another library.
        preferred = [path for path in checkpoints if path.stem.startswith("open_clip")]
        source = _beside((preferred or checkpoints)[0])
    elif given.is_file():
        source = _beside(given)
    else:
        names = open_clip.list_pretrained_tags_by_model(architecture.name)
        known = f"one of open_clip's tags {', '.join(names)}" if names else "no tag is known for it"
        raise WeightsError(
            "teacher.weights",
            f"must be an existing file or directory, or a tag of {architecture.name} ({known})",
            weights,
            "check the path",
        )
    require_activation(str(source.path), source.quick_gelu, architecture)
    return source


def hub_files(tag: dict[str, Any]) -> tuple[str, tuple[str, str]]:
    """The repository of a tag and two files of it, the second of which is read where the first,
    with safetensors, does not exist.
    """
    owner, name, *file = hub_id(tag).split("/")
    files = HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
    if file:
        files = str(Path(*file).with_suffix(".safetensors")), "/".join(file)
    return f"{owner}/{name}", files


def require_activation(weights: str, quick_gelu: bool | None, architecture: Architecture) -> None:
    """Raise `WeightsError` if the weights were trained with another activation.

    Such weights would load without an error and give wrong embeddings.
    """
    if quick_gelu is None or quick_gelu == architecture.quick_gelu:
        return
    trained, built = ("QuickGELU", "GELU") if quick_gelu else ("GELU", "QuickGELU")
    # Many architectures of open_clip exist twice, and the name tells the activation.
    other = architecture.name.removesuffix("-quickgelu") + ("-quickgelu" if quick_gelu else "")
    if architecture.path is not None:
        remedy = f"set quick_gelu to {str(quick_gelu).lower()} in {architecture.path.name}"
    elif other in open_clip.list_models():
        remedy = f"set teacher.model={other}"
    else:
        remedy = "choose an architecture with their activation"
    raise WeightsError(
        "teacher.weights",
        f"were trained with {trained}, but {architecture.name} is built with {built}",
        weights,
        remedy,
    )


def build(architecture: Architecture) -> nn.Module:
    """The model with random weights; the global random state does not change.

    Raises:
        ManifestError: open_clip cannot build the configuration.
    """
    config = dict(architecture.model)
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    text.pop("tokenizer_kwargs", None)
    # Else timm would download weights, which those of the file replace at once.
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    try:
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = kind(**(config | {"vision_cfg": vision, "text_cfg": text}))
    except Exception as error:  # a malformed configuration can raise anything in a constructor
        raise ManifestError(
            "teacher.model",
            f"must be buildable by open_clip ({one_line(error)})",
            architecture.name,
            "fix the configuration",
        ) from None
    return model


def read_weights(source: Source, architecture: Architecture) -> dict[str, Tensor]:
    """The tensors of the weight file, under exactly the names and shapes of the model.

    Raises:
        WeightsError: the file is corrupt or of another architecture.
    """
    state = read_state_dict("teacher.weights", source.path)
    with torch.device("meta"):  # shapes only, so that a mismatch costs no memory
        model = build(architecture)
    # The names of other code bases are turned into open_clip's, as its own loader does.
    try:
        state = dict(convert_state_dict(model, state))
        if hasattr(model, "text"):
            state = dict(convert_to_custom_text_state_dict(state))
    except Exception as error:  # it takes the tensors of a known name for those of one architecture
        rule = f"must be weights of {architecture.name} ({one_line(error)})"
        raise WeightsError("teacher.weights", rule, str(source.path), "give others") from None
    expected = model.state_dict()
    # SigLIP's term beside the scale, which no embedding needs, is not in every file.
    if "logit_bias" in expected:
        state.setdefault("logit_bias", torch.zeros(()))
    # Both are a scalar in some files and a tensor of shape [1] in others.
    for key in {"logit_scale", "logit_bias"} & state.keys() & expected.keys():
        if state[key].numel() == expected[key].numel():
            state[key] = state[key].reshape(expected[key].shape)
    remedy = f"give weights of {architecture.name}, or set teacher.model to theirs"
    match("teacher.weights", source.path, state, expected, remedy)
    return state


def build_tokenizer(
    architecture: Architecture, source: Source | None = None, cache: str = CACHE
) -> Any:
    """The tokenizer of the architecture, a callable from texts to int64 ids [N, L].

    Args:
        source: the weights, beside which `tokenizer.json` may be.
        cache: the folder with the files of hubs.

    Raises:
        ManifestError: the tokenizer's file is missing or damaged.
    """
    text = architecture.model["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    options["context_length"] = text.get("context_length", 77)
    file, known = tokenizer_file(architecture, source, cache), text.get("vocab_size", 49408)
    try:
        if text.get("hf_tokenizer_name"):
            assert file is not None  # noqa: S101 - `tokenizer_file` has found it
            return TokenizerFile(file, vocabulary=known, **options)
        if file:
            options["bpe_path"] = str(file)
        tokenizer = open_clip.tokenizer.SimpleTokenizer(**options)
        # An id beyond the table would fail on every worker.
        used = tokenizer.vocab_size
        if used > known:
            raise ValueError(f"it has {used} tokens, and the text tower knows {known}")
        return tokenizer
    except Exception as error:  # a damaged file of merges can raise anything
        raise ManifestError(
            "teacher.model",
            f"its tokenizer cannot be loaded ({one_line(error)})",
            str(file or architecture.name),
            "fix the file, or tokenizer_kwargs of the configuration",
        ) from None


def tokenizer_file(
    architecture: Architecture, source: Source | None = None, cache: str = CACHE
) -> Path | None:
    """The file with the tokenizer: a `tokenizer.json` beside the configuration, beside the weights,
    or in the cache, or CLIP's merges under a path relative to the configuration; None without one.

    Raises:
        WeightsError: the file is not there.
    """
    text = architecture.model["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    if not text.get("hf_tokenizer_name"):
        if "bpe_path" not in options:
            return None
        base = architecture.path.parent if architecture.path else Path()
        return existing_file("teacher.model (bpe_path)", base / str(options["bpe_path"]))
    if beside := tokenizer_beside(architecture, source):
        return beside
    if not (repository := hub_tokenizer(architecture)):
        rule, remedy = f"needs {TOKENIZER} in its folder", "copy it there, beside the configuration"
        raise WeightsError("teacher.model", rule, str(architecture.path), remedy)
    found = try_to_load_from_cache(repository, TOKENIZER, local_path(cache) / HUB)
    if not isinstance(found, str):
        rule = f"needs {TOKENIZER} of {repository}, which is not in the cache {cache}"
        raise WeightsError("teacher.model", rule, architecture.name, f"run {FETCH}")
    return Path(found)


def tokenizer_beside(architecture: Architecture, source: Source | None) -> Path | None:
    """A `tokenizer.json` beside the configuration or, without one, beside the weights."""
    files = (architecture.path, source.path if source else None)
    named = [file.with_name(TOKENIZER) for file in files if file]
    return next((file for file in named if file.is_file()), None)


def hub_tokenizer(architecture: Architecture) -> str:
    """The repository with the tokenizer of an architecture that open_clip ships; else empty.

    A configuration in a file may name any, so its tokenizer must be beside it.
    """
    if architecture.path is not None:
        return ""
    return str(architecture.model["text_cfg"].get("hf_tokenizer_name") or "")


def _shipped(model: str) -> dict[str, Any]:
    """The configuration that open_clip ships under a name, in the form of a hub's file."""
    # open_clip would fetch a name with a schema (`hf-hub:...`) from its hub.
    config = open_clip.get_model_config(model) if ":" not in model else None
    if config is None:
        near = difflib.get_close_matches(model, open_clip.list_models(), n=1, cutoff=0.4)
        remedy = f"did you mean {near[0]!r}?" if near else "see open_clip.list_models()"
        raise ManifestError(
            "teacher.model", "must be an open_clip architecture or a JSON file", model, remedy
        )
    # What all published weights of the architecture share; empty if they differ. It matters because
    # some architectures, for example MobileCLIP, have other preprocessing than CLIP.
    keys = ("mean", "std", "interpolation", "resize_mode")
    tags = open_clip.list_pretrained_tags_by_model(model)
    stated = [{key: get_pretrained_cfg(model, tag)[key] for key in keys} for tag in tags]
    usual = stated[0] if stated and all(each == stated[0] for each in stated) else {}
    return {"model_cfg": config, "preprocess_cfg": usual}


def _beside(path: Path) -> Source:
    """A weight file, with what a configuration beside it says."""
    if not (path.parent / CONFIG).is_file():
        return Source(path, {}, None)
    beside = read_architecture(str(path.parent))
    return Source(path, beside.preprocess, beside.quick_gelu, beside.path)
