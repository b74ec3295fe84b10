"""The text-only classifier: class vectors on a frozen CLIP tower, learned without any image.

It is the baseline of every student, because it needs no synthesis. The method is PromptStyler's
(Cho et al., ICCV 2023, arXiv 2307.15199), with T(...) the unit text embedding of a sentence:

1. Style words s_1 ... s_K, learned one after the other. Each is a token embedding that begins as
   noise and minimises L_style + L_content:

       L_style   = mean over j < i of |cos(T(a s_i style of a), T(a s_j style of a))|
       L_content = cross-entropy over classes n of cos(T(a s_i style of a CLASS_m), T(CLASS_n))
                   with CLASS_m as the right one, mean over m

2. A linear classifier on the K x M features T(a s_i style of a CLASS_m), trained with ArcFace.

Image features of the same tower then take the place of text features: the answer is the class whose
vector is nearest.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.manifest import Manifest
from dfkd.config.plan import derive_seed
from dfkd.errors import CorruptionError, ManifestError
from dfkd.models.teacher import Teacher, check_classes, resolve
from dfkd.prompts.pseudo_words import PseudoWords
from dfkd.storage.local import MissingObject, Storage
from dfkd.utils.progress import bar
from dfkd.utils.strict_json import canonical

STYLE, STYLED = "a {style} style of a", "a {style} style of a {class}"
"""The sentences that hold a style word, without and with a class."""

UPDATES, STYLE_RATE = 100, 0.002
"""Steps in which each style word is learned, and their rate, as published."""
EPOCHS, RATE = 50, 0.005
"""Passes of the classifier over all features, and their rate, as published."""
SPREAD = 0.02
"""Standard deviation of a style word before it is learned, as published."""
MOMENTUM = 0.9
"""Of SGD, for style words and classifier, as published."""
BATCH = 128
"""Features in a step of the classifier, as published."""
SCALE, MARGIN = 5.0, 0.5
"""s and m of ArcFace, as published."""

SCHEMA = 1
"""Raised whenever a change of code changes the vectors that the same manifest gives."""


def load_tower(manifest: Manifest, device: torch.device) -> Teacher:
    """The tower of the text-only classifier.

    Raises:
        ManifestError, WeightsError: as `Teacher.load` and `check_classes`; the fields are those of
            `text_only` if it names a tower of its own.
    """
    config = manifest.text_tower
    with errors_name_own_keys(manifest):
        tower = Teacher.load(config, device, cache=manifest.cache)
        check_classes(tower, manifest.classes, config.template)
        PseudoWords(tower, STYLED).tokens(manifest.classes, [STYLED] * len(manifest.classes))
    return tower


@contextmanager
def errors_name_own_keys(manifest: Manifest) -> Iterator[None]:
    """Lets errors about a tower that `text_only` names speak of its keys, not of the teacher's."""
    try:
        yield
    except ManifestError as error:
        if not manifest.text_only.model:
            raise
        raise error.of_section("teacher", "text_only") from None


def class_vectors(manifest: Manifest, tower: Teacher, seed: int, root: Storage) -> Tensor:
    """The classifier of a seed: unit vectors [M, E], float32, on the tower's device.

    It is trained once and then found under `root`, as `text-only/{classifier_name}.safetensors`.

    Raises:
        CorruptionError: what lies there is not what was written.
    """
    key = f"text-only/{classifier_name(manifest, seed)}.safetensors"
    wanted = (len(manifest.classes), tower.embedding_dim)
    try:
        found = safetensors.torch.load(root.get(key))["vectors"]
    except MissingObject:
        found = train_classifier(tower, manifest.classes, manifest.text_only.styles, seed)
        root.put(key, safetensors.torch.save({"vectors": found.cpu()}))
    except (SafetensorError, KeyError):
        found = torch.empty(0)
    if found.shape != wanted:
        raise CorruptionError(
            f"{root.location(key)}: is not the classifier that was written; delete it and run "
            "jobs/evaluate.py again, which trains it anew"
        )
    return found.to(tower.device)


def classifier_name(manifest: Manifest, seed: int) -> str:
    """`s{seed}-{hash12}`: the hash covers all that can change the classifier.

    Raises:
        ManifestError, WeightsError: as `load_tower`.
    """
    config = manifest.text_tower
    with errors_name_own_keys(manifest):
        digests = resolve(config, manifest.cache).digests
    about = {
        "schema": SCHEMA,
        "styles": manifest.text_only.styles,
        "tower": {"teacher.model": config.model} | digests,
        "classes": list(manifest.classes),
        "seed": seed,
    }
    return f"s{seed}-{hashlib.sha256(canonical(about)).hexdigest()[:12]}"


def train_classifier(tower: Teacher, classes: Sequence[str], styles: int, seed: int) -> Tensor:
    """Learn K = `styles` words, then the classifier; returns its unit vectors [M, E], float32.

    All that is random comes from `seed`.
    """
    draw = torch.Generator().manual_seed(derive_seed("text-only", seed))
    return fit_classifier(style_features(tower, classes, styles, draw), draw)


def style_features(
    tower: Teacher, classes: Sequence[str], count: int, draw: torch.Generator
) -> Tensor:
    """Unit text features [K, M, E] of every class in each of K = `count` learned styles."""
    names, templates = ["", *classes], [STYLE, *[STYLED] * len(classes)]
    sentences = PseudoWords(tower, STYLED).sentences(names, templates)
    contents, width = tower.encode_text(classes), tower.token_table.shape[1]
    styles: list[Tensor] = []
    features: list[Tensor] = []
    with bar("text-only classifier", count, "style") as progress:
        for _ in range(count):
            word = (SPREAD * torch.randn(width, generator=draw)).to(tower.device).requires_grad_()
            optimizer = torch.optim.SGD([word], STYLE_RATE, MOMENTUM)
            for _ in range(UPDATES):
                encoded = sentences.encode(word.expand(len(names), -1))
                loss = style_loss(encoded[0], styles) + content_loss(encoded[1:], contents)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                encoded = sentences.encode(word.expand(len(names), -1))
            styles.append(encoded[0])
            features.append(encoded[1:])
            progress.update(1)
    return torch.stack(features)


def style_loss(style: Tensor, earlier: Sequence[Tensor]) -> Tensor:
    """L_style of a unit feature [E] beside earlier ones: mean |cosine|, 0 if there is none."""
    if not earlier:
        return style.new_zeros(())
    return (torch.stack(list(earlier)) @ style).abs().mean()


def content_loss(styled: Tensor, contents: Tensor) -> Tensor:
    """L_content of unit features: classes in a style [M, E] beside the plain classes [M, E].

    The cosines are the logits; as published, nothing scales them.
    """
    return F.cross_entropy(styled @ contents.T, torch.arange(len(styled), device=styled.device))


def fit_classifier(features: Tensor, draw: torch.Generator) -> Tensor:
    """The linear classifier on unit features [K, M, E] of M classes: unit vectors [M, E]."""
    K, M, E = features.shape
    device = features.device
    inputs, labels = features.flatten(0, 1), torch.arange(M, device=device).repeat(K)
    start = (2 * torch.rand(M, E, generator=draw) - 1) / math.sqrt(E)  # as nn.Linear begins
    vectors = start.to(device).requires_grad_()
    optimizer = torch.optim.SGD([vectors], RATE, MOMENTUM)
    for _ in range(EPOCHS):
        for rows in torch.randperm(K * M, generator=draw).to(device).split(BATCH):
            cosines = inputs[rows] @ F.normalize(vectors, dim=1).T
            loss = F.cross_entropy(arcface(cosines, labels[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return F.normalize(vectors.detach(), dim=1)


def arcface(cosines: Tensor, labels: Tensor) -> Tensor:
    """Logits [N, M]: SCALE * cos(theta), of the right class SCALE * cos(theta + MARGIN).

    Args:
        cosines: cos(theta) [N, M] between features and class vectors.
        labels: the right classes [N].
    """
    own = cosines.gather(1, labels[:, None])
    sine = (1 - own.square()).clamp_min(1e-6).sqrt()  # whose gradient is infinite at 0
    harder = own * math.cos(MARGIN) - sine * math.sin(MARGIN)
    return SCALE * cosines.scatter(1, labels[:, None], harder)
