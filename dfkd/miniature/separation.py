"""Proof that no evaluation icon is a training icon: equal path data or equal looks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dctn

from dfkd.miniature.rendering import Pixels

Bits = npt.NDArray[np.float32]

#: Width of the hash: the lowest ``SIDE`` x ``SIDE`` frequencies of a 64 x 64 cosine transform.
SIDE = 12
_PATH = re.compile(r'\sd="([^"]+)"')
_TOKEN = re.compile(r"[a-zA-Z]|-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?")


def path_key(body: str, side: float) -> str:
    """The path data of an SVG body, numbers as thousandths of the icon's ``side``; "" if none."""
    paths = []
    for data in _PATH.findall(body):
        tokens = (_scaled(token, side) for token in _TOKEN.findall(data))
        paths.append(" ".join(tokens))
    return "|".join(sorted(paths))


def _scaled(token: str, side: float) -> str:
    return token if token.isalpha() else str(round(1000 * float(token) / side))


def _cropped(grey: Pixels, side: int) -> npt.NDArray[np.float32]:
    """The ink [side, side] of a dark drawing on white, cropped: margins and scale do not matter."""
    ink = 255 - grey
    rows, columns = np.flatnonzero(ink.max(1) > 32), np.flatnonzero(ink.max(0) > 32)
    if len(rows) and len(columns):
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray(ink).resize((side, side), Image.Resampling.BOX), np.float32)


def drawings(images: Iterable[Pixels]) -> Bits:
    """Cropped drawings as unit vectors [N, 576], whose products are correlations."""
    flat = np.stack([_cropped(image, 24).ravel() for image in images])
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6
    return flat


def likeness(evaluation: Bits, training: Bits) -> Bits:
    """The highest correlation [E] of each evaluation drawing with any training drawing.

    It finds what the hash misses: in a symmetric drawing many frequencies vanish, and the signs of
    what is left of them are noise.
    """
    highest: Bits = (evaluation @ training.T).max(axis=1)
    return highest


def perceptual_hash(grey: Pixels) -> Bits:
    """Hash of one [64, 64] image of dark ink on white, as +-1 signs [SIDE * SIDE - 1]."""
    square = _cropped(grey, 64)
    low = dctn(square, norm="ortho")[:SIDE, :SIDE].ravel()[1:]
    return np.where(low > np.median(low), 1, -1).astype(np.float32)


@dataclass(frozen=True)
class Match:
    """A training drawing (by position) that equals an evaluation drawing, and how it was found."""

    training: int
    evaluation: int
    how: str


def find_matches(
    train_paths: list[str],
    train_bits: Bits,
    eval_paths: list[str],
    eval_bits: Bits,
    max_distance: int,
    chunk: int = 8192,
) -> list[Match]:
    """Every training icon that is the same drawing as some evaluation icon, once each.

    Args:
        train_paths, eval_paths: ``path_key`` of each icon.
        train_bits, eval_bits: ``perceptual_hash`` of each icon, [icons, bits].
        max_distance: hashes that differ in at most this many bits are the same drawing.
    """
    known = {path: index for index, path in reversed(list(enumerate(eval_paths))) if path}
    found = {i: Match(i, known[p], "path") for i, p in enumerate(train_paths) if p in known}
    bits = train_bits.shape[1]
    for start in range(0, len(train_bits), chunk):
        distance = (bits - train_bits[start : start + chunk] @ eval_bits.T) / 2
        nearest = distance.argmin(1)
        for offset in np.flatnonzero(distance.min(1) <= max_distance):
            index = start + int(offset)
            found.setdefault(index, Match(index, int(nearest[offset]), "hash"))
    return sorted(found.values(), key=lambda match: match.training)


def hashes(images: Iterable[Pixels]) -> Bits:
    """``perceptual_hash`` of each [64, 64] grey image, stacked."""
    return np.stack([perceptual_hash(image) for image in images])
