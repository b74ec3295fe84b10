"""What the configuration of a labeller or teacher must say, so that this package can build and use
it.

Nothing in it may name code or files of a hub, which no fingerprint would hold.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from dfkd.errors import ManifestError
from dfkd.utils.strict_json import first_problem

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Channel = Annotated[list[_Number], Field(min_length=3, max_length=3)]
_Spread = Annotated[list[Annotated[_Number, Field(gt=0)]], Field(min_length=3, max_length=3)]


class _Preprocess(TypedDict, total=False):
    """The part of open_clip's `preprocess_cfg` that turns pictures into the tower's input.

    Its third way to make a square, `longest`, pads a picture; no published weights use it.
    """

    mean: _Channel
    std: _Spread
    interpolation: Literal["bicubic", "bilinear"]
    resize_mode: Literal["shortest", "squash"]


_POOLING = {"pool_type": "argmax", "proj_type": "linear", "proj_bias": False}
"""How a CLIP makes a text embedding, which is also open_clip's default."""

_POOLED_BY = ("argmax", "last")
"""Where a text tower ends: at the token with the highest id, as CLIP's, or at the last one."""

_TOKENIZER_KEYS = {False: {"bpe_path", "clean"}, True: {"clean", "strip_sep_token"}}
"""Of CLIP's tokenizer, and of one in a file `tokenizer.json`."""


def is_config(config: Any) -> bool:
    """Whether the keys that this package reads are there with the right types."""
    return (
        isinstance(config, dict)
        and type(config.get("embed_dim")) is int
        and isinstance(config.get("vision_cfg"), dict)
        and isinstance(config.get("text_cfg"), dict)
        and isinstance(config["text_cfg"].get("tokenizer_kwargs") or {}, dict)
    )


def _unsupported(model: str, rule: str, otherwise: str = "") -> ManifestError:
    """The error about an architecture of open_clip that this package cannot use."""
    remedy = f"choose a CLIP architecture such as ViT-B-32-quickgelu{otherwise}"
    return ManifestError("teacher.model", rule, model, remedy)


def refuse_unsupported(model: str, config: dict[str, Any]) -> None:
    """Raise `ManifestError` if this package cannot use the tokenizer or a tower."""
    text = config["text_cfg"]
    # timm would read such a tower from a hub or a folder, and no fingerprint covers what is there.
    if ":" in str(name := config["vision_cfg"].get("timm_model_name", "")):
        raise _unsupported(
            model,
            f"must name timm's own architectures; this one names a hub's or a folder's ({name!r})",
        )
    reason = None
    if "multimodal_cfg" in config or text.get("embed_cls"):
        reason = "a class embedding (CoCa, cls_emb)"
    # A module of another library, which reads it from a hub.
    elif text.get("hf_model_name"):
        reason = "a Hugging Face encoder (hf_model_name)"
    elif (pooled := text.get("pool_type", "argmax")) not in _POOLED_BY:
        reason = f"pool_type {pooled!r}"
    elif text.get("proj_type") == "none" and text.get("width") != config["embed_dim"]:
        reason = "another width than the embeddings (proj_type 'none')"
    if reason:
        rule = f"must have a text tower like CLIP's or SigLIP's; this one has {reason}"
        raise _unsupported(model, rule)
    # These are passed to a tokenizer, so only known ones are.
    options = text.get("tokenizer_kwargs") or {}
    known = _TOKENIZER_KEYS[bool(text.get("hf_tokenizer_name"))]
    if unknown := options.keys() - known:
        raise ManifestError(
            "teacher.model",
            f"its tokenizer_kwargs may hold {', '.join(sorted(known))} only",
            min(unknown),
            "remove it from the configuration",
        )


def require_token_embeddings(model: str, config: dict[str, Any]) -> None:
    """Raise `ManifestError` if prompts, generators and text-only classifiers cannot use the model:
    if a sentence's embedding does not follow from those of its tokens as a CLIP's does (Eq 7).
    """
    text = config["text_cfg"]
    reason = None
    if text.get("use_pad_mask"):
        reason = "a padding mask (use_pad_mask)"
    for key, usual in _POOLING.items():
        if text.get(key, usual) != usual:
            reason = f"{key} {text[key]!r}"
    if name := text.get("hf_tokenizer_name"):
        reason = f"another tokenizer (hf_tokenizer_name {name!r})"
    if reason:
        rule = f"must have CLIP's tokenizer and a text tower like CLIP's; this one has {reason}"
        otherwise = (
            ", or make this one a labeller (distillation.labeller) or a tower, without text-only "
            "in evaluation.models and candidates.classifiers"
        )
        raise _unsupported(model, rule, otherwise)


def checked_preprocess(model: str, preprocess: Any) -> dict[str, Any]:
    """The keys of `_Preprocess` with checked values; other keys are dropped."""
    try:
        checked = TypeAdapter(_Preprocess).validate_python(preprocess)
    except ValidationError as error:
        field, rule, _ = first_problem(error)
        raise ManifestError(
            "teacher.model", f"preprocess_cfg.{field}: {rule}", model, "fix the configuration"
        ) from None
    return dict(checked)
