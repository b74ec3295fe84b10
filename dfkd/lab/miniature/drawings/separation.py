"""Comparison of drawings, so that no training drawing equals one of the evaluation set.

Two drawings count as the same if any of three comparisons says so:

    path_key          equal path data, whatever the numbers' format and the icon's size
    perceptual_hash   few different bits; finds redrawn copies
    max_correlation   correlated pixels; finds copies of symmetric drawings, which the hash misses
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dctn

from dfkd.lab.miniature.drawings.rendering import Pixels

Floats = npt.NDArray[np.float32]

_FREQUENCIES = 12
"""The hash has the lowest `_FREQUENCIES` x `_FREQUENCIES` coefficients of a cosine transform.
"""
_SIDE = 24
"""Width of the drawings that are correlated, in pixels."""
_VISIBLE = 32
"""Ink (0-255) that a row or column needs to belong to the drawing."""
_CHUNK = 1024
"""Training drawings that are compared at once."""
_PATH = re.compile(r'\sd="([^"]+)"')
"""The data of an SVG path, and a command or number in it."""
_TOKEN = re.compile(r"[a-zA-Z]|-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?")


def path_key(body: str, side: float) -> str:
    """The path data of an SVG body in a normal form; "" if there is none.

    Numbers become thousandths of `side`, the icon's width in its own units, and paths are sorted.
    """
    paths = []
    for data in _PATH.findall(body):
        tokens = (_scaled(token, side) for token in _TOKEN.findall(data))
        paths.append(" ".join(tokens))
    return "|".join(sorted(paths))


def _scaled(token: str, side: float) -> str:
    """A command of a path as it is, a number in thousandths of `side`."""
    return token if token.isalpha() else str(round(1000 * float(token) / side))


def _cropped(grey: Pixels, side: int) -> npt.NDArray[np.float32]:
    """The ink of a dark drawing on white [64, 64], stretched to fill float32 [side, side].

    So margins, size and aspect ratio do not matter.
    """
    ink = 255 - grey
    rows = np.flatnonzero(ink.max(1) > _VISIBLE)
    columns = np.flatnonzero(ink.max(0) > _VISIBLE)
    if len(rows) and len(columns):
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray(ink).resize((side, side), Image.Resampling.BOX), np.float32)


def unit_vectors(images: Iterable[Pixels]) -> Floats:
    """Dark drawings on white, uint8 [64, 64] each, as unit vectors without a mean, [N, 576].

    The inner product of two of them is the correlation of the cropped drawings.
    """
    flat = np.stack([_cropped(image, _SIDE).ravel() for image in images])
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6
    return flat


def max_correlation(evaluation: Floats, training: Floats) -> Floats:
    """The highest correlation [E] of each evaluation drawing with any training drawing.

    It finds copies that the hash misses: many frequencies of a symmetric drawing vanish, so the
    signs of these coefficients are noise.

    Args:
        evaluation, training: `unit_vectors` [E, 576] and [T, 576].
    """
    highest: Floats = (evaluation @ training.T).max(axis=1)
    return highest


def perceptual_hash(grey: Pixels) -> Floats:
    """The hash of a dark drawing on white [64, 64]: signs +1 and -1, float32 [143].

    As in the DCT hash of Zauner (2010), a sign says whether a low frequency exceeds their median.
    Small changes of a drawing flip few signs.
    """
    frequencies = dctn(_cropped(grey, 64), norm="ortho")[:_FREQUENCIES, :_FREQUENCIES]
    low = frequencies.ravel()[1:]  # without the mean
    return np.where(low > np.median(low), 1, -1).astype(np.float32)


def find_matches(
    train_paths: Sequence[str],
    train_bits: Floats,
    eval_paths: Sequence[str],
    eval_bits: Floats,
    max_distance: int,
) -> dict[int, str]:
    """The training drawings that equal an evaluation drawing.

    Args:
        train_paths, eval_paths: `path_key` of each drawing; "" equals nothing.
        train_bits, eval_bits: `perceptual_hash` of each drawing, [drawings, bits].
        max_distance: hashes that differ in at most this many bits count as the same drawing.

    Returns:
        By the index of the training drawing, the comparison that found it: `path` or `hash`.
    """
    known = {*eval_paths} - {""}
    matches = {index: "path" for index, path in enumerate(train_paths) if path in known}
    # For +-1 vectors the inner product is bits - 2 * Hamming distance.
    least = train_bits.shape[1] - 2 * max_distance
    # In parts, which bounds memory.
    for start in range(0, len(train_bits), _CHUNK):
        highest = (train_bits[start : start + _CHUNK] @ eval_bits.T).max(1)
        for offset in np.flatnonzero(highest >= least):
            # A match by path data is the stronger evidence, so it is kept.
            matches.setdefault(start + int(offset), "hash")
    return matches


def hashes(images: Iterable[Pixels]) -> Floats:
    """`perceptual_hash` of each grey image [64, 64], stacked: float32 [N, 143]."""
    return np.stack([perceptual_hash(image) for image in images])
