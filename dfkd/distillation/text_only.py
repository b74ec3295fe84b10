"""The text-only classifier: class vectors on a frozen CLIP tower, trained without any image.

It is the baseline of every student, because it needs no synthesis. The method is PromptStyler
(Cho et al., ICCV 2023, arXiv 2307.15199). T(...) is the unit text embedding of a sentence:

1. Learn the style words s_1 ... s_K one after the other. Each is a token embedding that starts as
   noise and minimises L_style + L_content:

       L_style   = mean over j < i of |cos(T(a s_i style of a), T(a s_j style of a))|
       L_content = cross-entropy over classes n of cos(T(a s_i style of a CLASS_m), T(CLASS_n))
                   with CLASS_m as the true class, mean over m

2. Train a linear classifier with ArcFace on the K x M features T(a s_i style of a CLASS_m).

At test time image features of the same tower replace the text features; the prediction is the class
whose vector is nearest.
"""

import hashlib
import math
from collections.abc import Sequence

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.hashing import derive_seed
from dfkd.config.manifest import Manifest
from dfkd.config.synthesis import TeacherConfig
from dfkd.errors import CorruptionError
from dfkd.models.labeller import check_classes, file_hashes
from dfkd.models.teacher import Teacher
from dfkd.prompts.pseudo_words import PseudoWords
from dfkd.storage.base import MissingObject, Storage
from dfkd.utils.progress import bar
from dfkd.utils.strict_json import canonical

STYLE, STYLED = "a {style} style of a", "a {style} style of a {class}"
"""Sentences with a style word, without and with a class."""

UPDATES, STYLE_RATE = 100, 0.002
"""Optimisation steps for each style word, and the learning rate, as published."""
EPOCHS, RATE = 50, 0.005
"""Epochs of the classifier over all features, and the learning rate, as published."""
SPREAD = 0.02
"""Standard deviation of a style word at its start, as published."""
MOMENTUM = 0.9
"""Momentum of SGD for style words and classifier, as published."""
BATCH = 128
"""Batch size of the classifier, as published."""
SCALE, MARGIN = 5.0, 0.5
"""s and m of ArcFace, as published."""

SCHEMA = 1
"""To be increased with every code change that changes the vectors of a manifest."""


def check_texts(tower: Teacher, classes: Sequence[str], template: str) -> None:
    """Refuse class names that the tower cannot read or tell apart, or that do not fit a sentence
    with a style word, before any training.

    Raises:
        ManifestError: as `check_classes`.
    """
    check_classes(tower, classes, template)
    # A style is one token there, as "x" is.
    check_classes(tower, classes, STYLED.replace("{style}", "x"))


def class_vectors(
    manifest: Manifest, config: TeacherConfig, tower: Teacher, seed: int, root: Storage
) -> Tensor:
    """The classifier of a seed: unit vectors float32 [M, E] on the tower's device.

    The first call trains it and writes `text-only/{classifier_name}.safetensors` under `root`;
    later calls read that file.

    Args:
        config: names the tower, which is `tower`.

    Raises:
        CorruptionError: the stored file is damaged.
    """
    key = f"text-only/{classifier_name(manifest, config, seed)}.safetensors"
    shape = (len(manifest.classes), tower.embedding_dim)
    try:
        vectors = safetensors.torch.load(root.get(key))["vectors"]
    except MissingObject:
        vectors = train_classifier(tower, manifest.meanings, manifest.candidates.styles, seed)
        root.put(key, safetensors.torch.save({"vectors": vectors.cpu()}))
    except (SafetensorError, KeyError):
        vectors = torch.empty(0)
    # A flipped bit can leave the format intact, and a NaN would be taken for the nearest class.
    if (
        vectors.shape != shape
        or vectors.dtype != torch.float32
        or not ((vectors.norm(dim=1) - 1).abs() < 1e-4).all()
    ):
        raise CorruptionError(
            f"{root.location(key)}: is not the classifier that was written; delete it and run "
            "dfkd pipeline again, which trains it anew"
        )
    return vectors.to(tower.device)


def classifier_name(manifest: Manifest, config: TeacherConfig, seed: int) -> str:
    """`s{seed}-{hash12}`; the hash covers everything that can change the classifier.

    Raises:
        ManifestError, WeightsError: as `file_hashes`.
    """
    identity = {
        "schema": SCHEMA,
        "styles": manifest.candidates.styles,
        "tower": {"teacher.model": config.model} | file_hashes(config, manifest.cache),
        "classes": list(manifest.meanings),
        "seed": seed,
    }
    return f"s{seed}-{hashlib.sha256(canonical(identity)).hexdigest()[:12]}"


def train_classifier(tower: Teacher, classes: Sequence[str], styles: int, seed: int) -> Tensor:
    """Learn K = `styles` style words, then the classifier; returns its unit vectors float32 [M, E].

    All randomness comes from `seed`.
    """
    draw = torch.Generator().manual_seed(derive_seed("text-only", seed))
    return fit_classifier(style_features(tower, classes, styles, draw), draw)


def style_features(
    tower: Teacher, classes: Sequence[str], count: int, draw: torch.Generator
) -> Tensor:
    """Unit text features [K, M, E] of every class in each of K = `count` learned styles."""
    # One sentence without a class (L_style), then one for each class (L_content).
    names, templates = ["", *classes], [STYLE, *[STYLED] * len(classes)]
    sentences = PseudoWords(tower, STYLED).sentences(names, templates)
    contents, width = tower.encode_text(classes), tower.token_table.shape[1]
    words = (len(names), width)  # all sentences share the word
    styles: list[Tensor] = []
    features: list[Tensor] = []
    with bar("text-only classifier", count, "style") as progress:
        for _ in range(count):
            # Drawn on the CPU, so that every device starts from the same word.
            word = (SPREAD * torch.randn(width, generator=draw)).to(tower.device).requires_grad_()
            optimizer = torch.optim.SGD([word], STYLE_RATE, MOMENTUM)
            for _ in range(UPDATES):
                encoded = sentences.encode(word.expand(words))
                # Earlier styles are fixed, so each style only has to avoid those before it.
                loss = style_loss(encoded[0], styles) + content_loss(encoded[1:], contents)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            # Encoded once more, because the last update changed the word.
            with torch.no_grad():
                encoded = sentences.encode(word.expand(words))
            styles.append(encoded[0])
            features.append(encoded[1:])
            progress.update(1)
    return torch.stack(features)


def style_loss(style: Tensor, earlier: Sequence[Tensor]) -> Tensor:
    """L_style of a unit feature [E]: mean |cosine| to the earlier ones; 0 if there are none."""
    if not earlier:
        return style.new_zeros(())
    return (torch.stack(list(earlier)) @ style).abs().mean()


def content_loss(styled: Tensor, contents: Tensor) -> Tensor:
    """L_content: cross-entropy of the classes in a style [M, E] against the plain classes [M, E].

    Both are unit features. The cosines are the logits, without a scale, as published.
    """
    return F.cross_entropy(styled @ contents.T, torch.arange(len(styled), device=styled.device))


def fit_classifier(features: Tensor, draw: torch.Generator) -> Tensor:
    """Train the linear classifier on unit features [K, M, E]; returns unit class vectors [M, E]."""
    K, M, E = features.shape
    device = features.device
    inputs, labels = features.flatten(0, 1), torch.arange(M, device=device).repeat(K)
    # The initialisation of nn.Linear, from a generator of our own.
    start = (2 * torch.rand(M, E, generator=draw) - 1) / math.sqrt(E)
    vectors = start.to(device).requires_grad_()
    optimizer = torch.optim.SGD([vectors], RATE, MOMENTUM)
    for _ in range(EPOCHS):
        for rows in torch.randperm(K * M, generator=draw).to(device).split(BATCH):
            # Only the directions count at test time, so only the cosines are trained.
            cosines = inputs[rows] @ F.normalize(vectors, dim=1).T
            loss = F.cross_entropy(arcface(cosines, labels[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return F.normalize(vectors.detach(), dim=1)


def arcface(cosines: Tensor, labels: Tensor) -> Tensor:
    """ArcFace logits [N, M]: SCALE cos(theta), for the true class SCALE cos(theta + MARGIN).

    Args:
        cosines: cos(theta) [N, M] between features and class vectors.
        labels: the true classes int64 [N].
    """
    own = cosines.gather(1, labels[:, None])
    sine = (1 - own.square()).clamp_min(1e-6).sqrt()  # the gradient of sqrt is infinite at 0
    # cos(a + b) = cos a cos b - sin a sin b
    harder = own * math.cos(MARGIN) - sine * math.sin(MARGIN)
    return SCALE * cosines.scatter(1, labels[:, None], harder)
