"""Drawings: the cache of rendered ones, images of them, batches for training, and comparison.

All images are painted from a `Cache`. Icon sets name the same objects, repeat a drawing in several
variants, and contain more parts of user interfaces than things. So drawings are not sampled
uniformly: `weights` favours objects that several sets draw.

No training drawing may equal one of the evaluation set. Two drawings count as the same if any of
three comparisons says so:

    path_key          equal path data, whatever the numbers' format and the icon's size
    perceptual_hash   few different bits; finds redrawn copies
    max_correlation   correlated pixels; finds copies of symmetric drawings, which the hash misses
"""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import resvg_py
import torch
from PIL import Image
from scipy.fft import dctn
from torch import Tensor

from dfkd.lab.miniature.icons import UI_WORDS, Catalogue, Drawing, Icon, choose
from dfkd.lab.miniature.looks import Look, LookSampler, paint
from dfkd.lab.miniature.painting import SIZE
from dfkd.lab.miniature.recipe import write_whole
from dfkd.utils.pixels import from_bytes

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in luma (ITU-R BT.601)."""
_BLANK = 2
"""Drawings whose mean alpha (0-255) is not above this are blank."""
_MARGIN = 0.04
"""Empty space on each side of an icon, as a share of its longer side."""
_REFERENCE = re.compile(r"href\s*=\s*[\"'](?!#|data:image/(?:png|jpeg|gif);)", re.I)
Pixels = npt.NDArray[np.uint8]


def refers_outside(text: str) -> bool:
    """Whether an SVG names a file or an address, from which it would paint what is not its own."""
    return _REFERENCE.search(text) is not None


def svg(icon: Icon) -> str:
    """A square SVG document of the icon, centred, with black for colours that it leaves open."""
    left, top, width, height = icon.box
    side = max(width, height) * (1 + 2 * _MARGIN)
    x, y = left - (side - width) / 2, top - (side - height) / 2
    body = icon.body.replace("currentColor", "#000")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{x} {y} {side} {side}" width="{SIZE}" height="{SIZE}">{body}</svg>'
    )


def rgba(icon: Icon) -> Pixels | None:
    """The icon as RGBA, uint8 [64, 64, 4], colours not premultiplied.

    Returns None for an icon that cannot be drawn, is blank, or refers to a file.
    """
    if refers_outside(icon.body):
        return None
    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg(icon), width=SIZE, height=SIZE))
    except ValueError:
        return None
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    return pixels if pixels[..., 3].mean() > _BLANK else None


@dataclass(frozen=True)
class DrawingRow(Drawing):
    """A drawing in the index of a `Cache`. The names of the fields are keys of `rows.json`."""

    colour: bool
    """Whether it has colours of its own; else it is coverage, which can be painted in any ink."""
    slot: int
    """Index of its pixels in the array for drawings of its kind."""


@dataclass(frozen=True)
class Cache:
    """Rendered drawings: an index and two arrays of pixels."""

    rows: list[DrawingRow]
    mono: Pixels
    """Alpha, uint8 [N, 64, 64], of drawings in one ink."""
    colour: Pixels
    """RGBA, uint8 [M, 64, 64, 4], not premultiplied, of drawings in their own colours."""


def build(
    catalogue: Catalogue,
    prefixes: Sequence[str],
    folder: Path,
    variants: int,
    processes: int,
    most: int = 0,
) -> Cache:
    """Render the collections into `folder`, unless an earlier call has; returns the cache.

    Args:
        prefixes: the collections; the rows are in this order.
        variants: maximum number of variants of one drawing in a collection.
        processes: number of processes that render.
        most: maximum number of icons of one collection; 0 is no limit.
    """
    if not (folder / "rows.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(processes) as pool:
            jobs = [pool.submit(_render, str(catalogue.root), p, variants, most) for p in prefixes]
            parts = [job.result() for job in jobs]
        write(folder, parts)
    return read(folder)


def read(folder: Path) -> Cache:
    """The cache in `folder`; its pixels are memory-mapped."""
    rows = []
    for fields in json.loads((folder / "rows.json").read_text("utf-8")):
        # Lists become tuples, so that a row is hashable.
        lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        rows.append(DrawingRow(**{**fields, **lists}))
    return Cache(
        rows,
        np.load(folder / "mono.npy", mmap_mode="r"),
        np.load(folder / "colour.npy", mmap_mode="r"),
    )


def joined(first: Cache, second: Cache) -> Cache:
    """One cache of the rows of both, in order."""
    # The slots of the second cache move behind those of the first, in the array of their kind.
    moved = [
        replace(row, slot=row.slot + len(first.colour if row.colour else first.mono))
        for row in second.rows
    ]
    # Clip art has no drawings in one ink; without a copy that large array stays memory-mapped.
    return Cache(
        [*first.rows, *moved],
        np.concatenate([first.mono, second.mono]) if len(second.mono) else first.mono,
        np.concatenate([first.colour, second.colour]),
    )


def grey(cache: Cache, row: DrawingRow) -> Pixels:
    """The luma of a drawing, black or coloured on white, uint8 [64, 64]; for comparisons."""
    if not row.colour:
        return np.asarray(255 - cache.mono[row.slot])
    # In integers, so that the result is the same on every machine; 127 rounds to the nearest.
    colour = cache.colour[row.slot].astype(np.uint16)
    alpha = colour[..., 3:]
    on_white = (colour[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return np.asarray(on_white.astype(np.float32) @ _LUMA, np.uint8)


_Part = tuple[list[DrawingRow], Pixels, Pixels]
"""Rows without their slots, and the arrays `Cache.mono` and `Cache.colour` of these rows."""


def _render(root: str, prefix: str, variants: int, most: int) -> _Part:
    """Render one collection in a process of its own; the arguments are those of `build`."""
    rows: list[DrawingRow] = []
    mono: list[Pixels] = []
    coloured: list[Pixels] = []
    selected = choose(Catalogue(Path(root)).icons(prefix), variants)
    for icon in selected[:most] if most else selected:
        if (pixels := rgba(icon)) is None:
            continue
        # What an icon set leaves open is rendered black, so other colours are the icon's own.
        colour = bool(pixels[..., :3][pixels[..., 3] > 0].max() > 0)
        rows.append(
            DrawingRow(
                prefix, icon.name, icon.words, icon.style, icon.categories, icon.aliases, colour, 0
            )
        )
        if colour:
            coloured.append(pixels)
        else:
            mono.append(pixels[..., 3])
    return rows, stack(mono, (SIZE, SIZE)), stack(coloured, (SIZE, SIZE, 4))


def stack(items: Sequence[Pixels], shape: tuple[int, ...]) -> Pixels:
    """The items as uint8 [N, *shape], also if there are none."""
    return np.stack(items) if items else np.zeros((0, *shape), np.uint8)


def write(folder: Path, parts: list[_Part]) -> None:
    """Write the parts as one cache in `folder`; the slots of their rows are set here."""
    np.save(folder / "mono.npy", np.concatenate([p[1] for p in parts]))
    np.save(folder / "colour.npy", np.concatenate([p[2] for p in parts]))
    slots = {False: count(), True: count()}
    rows = [asdict(replace(row, slot=next(slots[row.colour]))) for part in parts for row in part[0]]
    # `rows.json` marks a complete cache, so it is written last.
    write_whole(folder / "rows.json", json.dumps(rows))


def pixels(cache: Cache, rows: Sequence[DrawingRow]) -> tuple[Tensor, Tensor]:
    """The pixels of rows as float32 in [0, 1], each kind in the given order.

    Returns:
        Coverage [N, 64, 64] of the drawings in one ink, and premultiplied RGBA [M, 4, 64, 64] of
        those in their own colours.
    """
    mono = stack([cache.mono[row.slot] for row in rows if not row.colour], (SIZE, SIZE))
    colour = stack([cache.colour[row.slot] for row in rows if row.colour], (SIZE, SIZE, 4))
    layers = from_bytes(torch.from_numpy(colour))
    layers[:, :3] *= layers[:, 3:]
    return torch.from_numpy(mono).float() / 255, layers


def painted(
    cache: Cache,
    rows: Sequence[DrawingRow],
    looks: Sequence[Look],
    gen: torch.Generator,
    pose: float = 1.0,
) -> Tensor:
    """The rows painted in their looks: float32 [rows, 3, 64, 64] in [0, 1], in the given order.

    Args:
        pose: how far drawings are moved, turned and scaled at random; see `looks.painting.posed`.
    """
    # `paint` expects drawings in one ink before those in their own colours.
    order = sorted(range(len(rows)), key=lambda i: rows[i].colour)
    alpha, coloured = pixels(cache, [rows[i] for i in order])
    images = paint(alpha, coloured, [looks[i] for i in order], gen, pose)
    return images[torch.tensor(order).argsort()]


def random_images(
    cache: Cache, rows: Sequence[DrawingRow], default: float, gen: torch.Generator
) -> Tensor:
    """The rows painted in random looks: float32 [rows, 3, 64, 64] in [0, 1].

    Args:
        default: share of the drawings in one ink that get the default look.
    """
    sampler = LookSampler(gen)
    return painted(cache, rows, [sampler.draw(row.colour, default) for row in rows], gen)


def plain(cache: Cache, rows: Sequence[DrawingRow]) -> Tensor:
    """The rows without poses and looks, black or coloured on white: float32 [rows, 3, 64, 64]."""
    out = torch.empty(len(rows), 3, SIZE, SIZE)
    for line, row in zip(out, rows, strict=True):
        if row.colour:
            layer = pixels(cache, [row])[1][0]
            line.copy_(layer[:3] + 1 - layer[3])
        else:
            line.copy_(1 - torch.from_numpy(cache.mono[row.slot].astype(np.float32)) / 255)
    return out


Weights = Callable[[Sequence[DrawingRow]], npt.NDArray[np.float64]]
"""Computes the sampling probability of each row, float64 [rows]."""
GROUP_SIZE = 4
"""Number of drawings in a group of one object."""
_PICTORIAL = frozenset({"emojione", "fxemoji", "streamline-emojis", "flat-color-icons"})
"""Sets of pictures of things, most of them in colour, of which there are few."""
_MACHINE_MADE = frozenset({"iconmind"})
"""Sets that a program drew."""


def easy_weights(rows: Sequence[DrawingRow]) -> npt.NDArray[np.float64]:
    """Sampling probability of each row in the first steps, float64 [rows].

    Only objects that at least three sets draw are sampled. Each drawing of a set is as likely as
    any other one, however many variants it has.
    """
    variants, sets = _counts(rows)
    # A small trial may have no object of three sets.
    shared = 3 if max(sets.values()) > 2 else 1
    return _normalised([(sets[r.words] >= shared) / variants[r.collection, r.words] for r in rows])


def name_weights(rows: Sequence[DrawingRow]) -> npt.NDArray[np.float64]:
    """Sampling probability of each row where all names are equally likely, float64 [rows].

    So are the drawings of a name, however many variants each has.
    """
    variants, sets = _counts(rows)
    return _normalised([1 / (sets[r.words] * variants[r.collection, r.words]) for r in rows])


def class_weights(
    rows: Sequence[DrawingRow], classes: Iterable[Sequence[DrawingRow]], share: float
) -> npt.NDArray[np.float64]:
    """Sampling probability of each row where some classes get a share, float64 [rows].

    All classes are equally likely, and so are all drawings of a class. The rest is `weights`.

    Args:
        classes: the drawings of each class, which are among `rows`.
        share: probability of all classes together, 0-1.
    """
    index = {row: i for i, row in enumerate(rows)}
    raw = np.zeros(len(rows))
    for drawings in classes:
        raw[[index[row] for row in drawings]] += 1 / len(drawings)
    # A small trial may have drawings of none of them.
    if not raw.any():
        return weights(rows)
    return share * _normalised(raw) + (1 - share) * weights(rows)


def weights(rows: Sequence[DrawingRow]) -> npt.NDArray[np.float64]:
    """Sampling probability of each row after the first steps, float64 [rows].

    Objects of several sets, short names, emoji and colour get more, variants of a drawing and parts
    of user interfaces less.
    """
    variants, sets = _counts(rows)
    raw = []
    for row in rows:
        # So n variants together have n ** 0.3 times the weight of a single drawing.
        weight: float = variants[row.collection, row.words] ** -0.7
        if sets[row.words] == 1:
            # A name of one set alone is often a compound that only this set uses.
            weight *= 0.2
        else:
            # A drawing's weight rises with its name's sets up to four, and falls slowly beyond.
            weight *= min(1.0, sets[row.words] / 4) * sets[row.words] ** -0.15
        # One word names a thing; many words describe a situation.
        weight *= {1: 3.0, 2: 1.0}.get(len(row.words), 0.4)
        if not UI_WORDS.isdisjoint(row.words):
            weight *= 0.3
        if row.collection in _PICTORIAL:
            weight *= 4
        elif row.colour:
            weight *= 2
        raw.append(weight * (0.4 if row.collection in _MACHINE_MADE else 1))
    return _normalised(raw)


def _counts(
    rows: Sequence[DrawingRow],
) -> tuple[Counter[tuple[str, tuple[str, ...]]], Counter[tuple[str, ...]]]:
    """Number of variants of each drawing (a set and a name), and of sets with each name."""
    variants = Counter((r.collection, r.words) for r in rows)
    return variants, Counter(name for _, name in variants)


def _normalised(raw: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The values divided by their sum."""
    values = np.asarray(raw, np.float64)
    shares: npt.NDArray[np.float64] = values / values.sum()
    return shares


class Batches:
    """The drawings of training batches; batch `step` depends only on (seed, step).

    So a training that resumes gets the batches that it would have got.

    Args:
        keep: indices of the rows of `cache` that are sampled.
        size: number of drawings of a batch.
        easy, usual: sampling probabilities of the first batches and of later ones, from the rows.
    """

    def __init__(
        self,
        cache: Cache,
        keep: npt.NDArray[np.int64],
        size: int,
        seed: int,
        easy: Weights = easy_weights,
        usual: Weights = weights,
    ) -> None:
        self.cache, self.size, self.seed = cache, size, seed
        self.rows = [cache.rows[i] for i in keep]
        self.easy, self.usual = easy(self.rows), usual(self.rows)
        self.named: dict[tuple[str, ...], list[DrawingRow]] = {}
        for row in self.rows:
            self.named.setdefault(row.words, []).append(row)

    def draw(
        self, step: int, strength: float = 1.0, groups: int = 0
    ) -> tuple[list[DrawingRow], np.random.Generator]:
        """The rows of a batch, and the generator for the step's other random choices.

        Args:
            strength: share of `usual` in the sampling probabilities, 0-1; the rest is those of
                the first batches.
            groups: the last `GROUP_SIZE * groups` rows are groups that share an object: twice
                the same drawing, and two drawings of the same name, mostly from other sets.
        """
        rng = np.random.default_rng((self.seed, step))
        singles = self.size - GROUP_SIZE * groups
        # Inverse transform sampling: one drawing for each single row, and the first of each group.
        cumulative = np.cumsum((1 - strength) * self.easy + strength * self.usual)
        indices = np.searchsorted(cumulative, rng.random(singles + groups) * cumulative[-1])
        sampled = [self.rows[i] for i in indices]
        rows = sampled[:singles]
        for row in sampled[singles:]:
            same_name = self.named[row.words]
            others = [same_name[rng.integers(len(same_name))] for _ in range(2)]
            rows += [row, row, *others]
        return rows, rng


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
        tokens = (
            token if token.isalpha() else str(round(1000 * float(token) / side))
            for token in _TOKEN.findall(data)
        )
        paths.append(" ".join(tokens))
    return "|".join(sorted(paths))


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
