"""The frozen model whose judgement a student learns: an image and a text tower of one space.

E_img     encode_image                        Eq 1
E_txt     encode_text                         Eq 2
D         spherical_distance, `distances`     Eqs 3 and 4

The teacher, which also guides the synthesis, is one with a text tower that takes token embeddings
(`teacher.py`); SigLIP, SigLIP 2 and CLIPA are labellers only.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from dfkd.config.hashing import fingerprint, sha256_file
from dfkd.config.paths import CACHE
from dfkd.config.synthesis import TeacherConfig
from dfkd.errors import ManifestError
from dfkd.models.teacher_architecture import (
    Architecture,
    build,
    build_tokenizer,
    find_weights,
    read_architecture,
    read_weights,
    tokenizer_file,
)
from dfkd.models.tokenizer_file import TokenizerFile
from dfkd.models.weights.reading import load_into
from dfkd.utils.device import multiplies_bfloat16
from dfkd.utils.images import USUAL, Resizing
from dfkd.utils.types import Precision

TEXT_BATCH = 256
"""Number of texts that are encoded at once."""


def file_hashes(config: TeacherConfig, cache: str = CACHE) -> dict[str, str]:
    """Find and hash the files of a labeller or teacher.

    Args:
        cache: the folder with the files of open_clip's tags.

    Returns:
        The sha256 of each file by its role in `dfkd.config.identity`, such as `teacher.weights`,
        and of the preprocessing if it is not OpenAI's.

    Raises:
        ManifestError: the architecture is unknown or unsupported.
        WeightsError: the weights or the tokenizer are missing, or the weights were trained with
            another activation.
    """
    architecture = read_architecture(config.model)
    source = find_weights(config.weights, architecture, cache)
    files = {
        "teacher.weights": source.path,
        # It states the pixels' mean and deviation; `teacher.model` may name the same file.
        "teacher.weights/config": None if source.config == architecture.path else source.config,
        "teacher.model": architecture.path,
        "teacher.tokenizer": tokenizer_file(architecture, source, cache),
    }
    hashes = {role: sha256_file(path) for role, path in files.items() if path is not None}
    # open_clip states those of a tag in its code, so the same file has others when given by path.
    if (used := _preprocessing(source.preprocess or architecture.preprocess)) != _preprocessing({}):
        hashes["teacher.preprocessing"] = fingerprint(used)
    return hashes


def _preprocessing(stated: dict[str, Any]) -> dict[str, Any]:
    """Mean, deviation and interpolation of an image tower's input, by default OpenAI's.

    `resize_mode` is not among them: synthesised images are square, so it changes no label.
    """
    usual = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD, "interpolation": "bicubic"}
    used = {key: stated.get(key, value) for key, value in usual.items()}
    return used | {key: list(used[key]) for key in ("mean", "std")}


class Labeller:
    """A frozen open_clip model; created by `Labeller.load`.

    Embeddings have `embedding_dim` dimensions. They are float32 and L2-normalised, except where a
    method says otherwise.

    Attributes:
        name: the key `model` of the manifest's section.
        model: the open_clip module, in evaluation mode and without gradients of its weights.
        tokenizer: open_clip's, or a `TokenizerFile`.
        device: the model's device.
        text: the module with the layers of the text tower.
        visual: the image tower.
        image_size: height and width in pixels of the image tower's input.
        embedding_dim: E, the dimension of embeddings.
        logit_scale: factor on cosines before a softmax over texts. SigLIP also has a term, which
            makes no difference there.
        context_length: L, the number of tokens of a text with start, end and padding.
        content_length: the number of tokens without those for start and end.
        mean, std: [1, 3, 1, 1], mean and standard deviation that normalise pixels in [0, 1].
        resizing: how a picture of the evaluation becomes a square for this tower.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        name: str,
        preprocess: dict[str, Any],
        precision: Precision = "float32",
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.text: Any = getattr(model, "text", model)  # CLIP itself holds the text layers
        visual: Any = model.visual
        self.visual = visual.to(memory_format=torch.channels_last)
        size: int | tuple[int, int] = self.visual.image_size
        self.image_size, width = (size, size) if isinstance(size, int) else size
        if self.image_size != width:
            raise ManifestError("teacher.model", "must see square images", name, "choose another")
        scale = model.get_parameter("logit_scale")
        self.device = scale.device
        self.context_length = int(self.text.context_length)
        marks = tokenizer.marks if isinstance(tokenizer, TokenizerFile) else 2
        self.content_length = self.context_length - marks
        projection = self.text.text_projection
        if isinstance(projection, nn.Linear):
            self.embedding_dim = projection.out_features
        else:
            # Without one, as in a SigLIP, the tower is as wide as the embeddings.
            last = self.text.ln_final.weight if projection is None else projection
            self.embedding_dim = int(last.shape[-1])
        self.logit_scale = float(scale.exp())
        used = _preprocessing(preprocess)
        self.mean, self.std = (
            torch.tensor(used[key], device=self.device).view(1, 3, 1, 1) for key in ("mean", "std")
        )
        # (pixels - mean) / std as one multiplication and one addition.
        self._scale, self._shift = 1 / self.std, -self.mean / self.std
        mode = preprocess.get("resize_mode", USUAL.mode)
        self.resizing = Resizing(mode, used["interpolation"])
        self._precision = precision
        # Computed here, because torch.compile cannot trace it.
        self._multiplies = multiplies_bfloat16(self.device)

    @classmethod
    def load(
        cls,
        config: TeacherConfig,
        device: torch.device,
        precision: Precision = "float32",
        cache: str = CACHE,
    ) -> Self:
        """The model that a section of the manifest names.

        Args:
            config: the section of the manifest.
            device: where its weights are put.
            precision: `bfloat16` autocasts the image tower on devices with such instructions.
            cache: as for `file_hashes`.

        Raises:
            ManifestError, WeightsError: as `file_hashes`.
            WeightsError: the weights are corrupt, or of another architecture.
        """
        architecture = read_architecture(config.model)
        cls.require(architecture)
        source = find_weights(config.weights, architecture, cache)
        state = read_weights(source, architecture)
        model = build(architecture)
        load_into("teacher.weights", source.path, model, state)
        tokenizer = build_tokenizer(architecture, source, cache)
        # What was published with the weights takes precedence over the architecture's.
        preprocess = source.preprocess or architecture.preprocess
        return cls(model.to(device), tokenizer, config.model, preprocess, precision)

    @classmethod
    def require(cls, architecture: Architecture) -> None:
        """Raise `ManifestError` for an architecture that this class cannot use; none is refused."""

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids of the texts, int64 [N, L] on the model's device."""
        ids: Tensor = self.tokenizer(list(texts))
        return ids.to(self.device)

    def content_tokens(self, text: str) -> list[int]:
        """The token ids of a text without start, end and padding; possibly empty."""
        return list(self.tokenizer.encode(text))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings of texts, float32 [N, E]."""
        model: Any = self.model
        chunks = [texts[i : i + TEXT_BATCH] for i in range(0, len(texts), TEXT_BATCH)]
        encoded = [model.encode_text(self.tokenize(chunk)) for chunk in chunks]
        return F.normalize(torch.cat(encoded).float(), dim=-1)

    def encode_image(self, pixels: Tensor, precision: Precision | None = None) -> Tensor:
        """Normalised embeddings float32 [N, E] of pixels [N, 3, H, W] in [0, 1], differentiable.

        Images of another size are resized to a square of `image_size` (antialiased), which distorts
        images that are not square.

        Args:
            precision: precision of this call instead of the model's; labels are always made
                with `float32`.
        """
        side = self.image_size
        if pixels.shape[-2:] != (side, side):
            mode = self.resizing.interpolation
            pixels = F.interpolate(
                pixels, (side, side), mode=mode, antialias=True, align_corners=False
            )
        mixed = self._multiplies and (precision or self._precision) == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            normal = torch.addcmul(self._shift, pixels, self._scale)
            features: Tensor = self.visual(normal.contiguous(memory_format=torch.channels_last))
        return F.normalize(features.float(), dim=-1)


@contextmanager
def errors_name(section: str) -> Iterator[None]:
    """Let errors of the block name keys of `section`, where this package's say `teacher`."""
    try:
        yield
    except ManifestError as error:
        field, rule, value, remedy = error.parts
        field, rule, remedy = (
            re.sub(r"\bteacher\.(model|weights|template)", rf"{section}.\1", text)
            for text in (field, rule, remedy)
        )
        raise type(error)(field, rule, value, remedy) from None


def class_prompt(template: str, name: str) -> str:
    """The vanilla prompt of a class: `template` (`teacher.template`) with the class name."""
    return template.replace("{class}", name)


def check_classes(labeller: Labeller, classes: Sequence[str], template: str = "{class}") -> None:
    """Check that the model can read and distinguish the class names.

    Raises:
        ManifestError: a name has no tokens or one that marks an end, has the same tokens as another
            one, or gives a prompt that is longer than the context.
    """
    limit = labeller.content_length
    marks = set(labeller.tokenizer.all_special_ids)
    seen: dict[tuple[int, ...], str] = {}
    for name in classes:
        tokens = tuple(labeller.content_tokens(name))
        if not tokens:
            raise ManifestError("classes", "tokenises to nothing", name, "give the class a word")
        # CLIP reads a text up to an end token only; its tokenizer makes one of `<end_of_text>`.
        if marks & set(tokens):
            rule = "must not hold the model's mark of a text's start or end"
            raise ManifestError("classes", rule, name, "rename it")
        if tokens in seen:
            rule = f"reads to the model exactly like {seen[tokens]!r}"
            raise ManifestError("classes", rule, name, "rename one of the two")
        seen[tokens] = name
        length = len(labeller.content_tokens(class_prompt(template, name)))
        if length > limit:
            rule = f"a class prompt has at most {limit} tokens, this one {length}"
            raise ManifestError("classes", rule, name, "shorten the name")


def spherical_distance(x: Tensor, y: Tensor) -> Tensor:
    """D = 2 * arcsin(||x - y|| / 2) ** 2 of unit vectors, over the last dimension; float32.

    D is in [0, pi^2 / 2]; smaller is closer. The arcsin is computed as atan2(||x - y||, ||x + y||).
    On unit vectors this is the same, and its value and gradient are finite also for identical and
    for opposite vectors.
    """
    x, y = x.float(), y.float()
    difference = torch.linalg.vector_norm(x - y, dim=-1)
    return 2 * torch.atan2(difference, torch.linalg.vector_norm(x + y, dim=-1)).square()


def distances(images: Tensor, texts: Tensor) -> Tensor:
    """`spherical_distance` of every image [N, E] to every text [M, E]: float32 [N, M]."""
    images, texts = images.float(), texts.float()
    # The distance of a pair must not depend on its batch. Two things would make it depend: matrix
    # products, and atan2 in float32, whose vector and scalar kernels round differently.
    exact = "donot_use_mm_for_euclid_dist"
    difference = torch.cdist(images, texts, compute_mode=exact).double()
    total = torch.cdist(images, -texts, compute_mode=exact).double()
    return (2 * torch.atan2(difference, total).square()).float()
