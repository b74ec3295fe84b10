"""Rendering of icons, and the cache of rendered pixels that both recipes read."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import resvg_py
import torch
from PIL import Image
from torch import Tensor

from dfkd.miniature.icons import Catalogue, Icon, choose, word_set
from dfkd.miniature.looks.look import Look
from dfkd.miniature.looks.painting import paint
from dfkd.utils.pixels import from_bytes

SIZE = 64
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
Pixels = npt.NDArray[np.uint8]


def svg(icon: Icon, margin: float = 0.04) -> str:
    """A square SVG document of the icon in black, centred with a small margin."""
    left, top, width, height = icon.box
    side = max(width, height) * (1 + 2 * margin)
    x, y = left - (side - width) / 2, top - (side - height) / 2
    body = icon.body.replace("currentColor", "#000")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{x} {y} {side} {side}" width="{SIZE}" height="{SIZE}">{body}</svg>'
    )


def rgba(icon: Icon) -> Pixels:
    """The icon as [64, 64, 4] uint8, colours not premultiplied.

    Raises:
        ValueError: the SVG body cannot be drawn.
    """
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg(icon), width=SIZE, height=SIZE))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def on_white(pixels: Pixels) -> Pixels:
    """RGBA [..., 64, 64, 4] composited over white, as [..., 64, 64, 3]."""
    alpha = pixels[..., 3:].astype(np.uint16)
    mixed = pixels[..., :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


@dataclass(frozen=True)
class IconRow:
    """One entry of the cache's index; ``slot`` is a position in the array selected by
    ``colour``.
    """

    collection: str
    name: str
    words: tuple[str, ...]
    style: tuple[str, ...]
    categories: tuple[str, ...]
    aliases: tuple[str, ...]
    colour: bool
    slot: int

    @property
    def concept(self) -> str:
        """The object's name as text."""
        return " ".join(self.words)


@dataclass(frozen=True)
class Cache:
    """Rendered icons: alpha [N, 64, 64] of black icons, RGBA [M, 64, 64, 4] of coloured ones."""

    rows: list[IconRow]
    mono: Pixels
    colour: Pixels


def build(
    catalogue: Catalogue,
    prefixes: Sequence[str],
    folder: Path,
    variants: int,
    processes: int,
    most: int = 0,
) -> Cache:
    """Render the collections into ``folder``, or read what an earlier call left there.

    Args:
        variants: maximum number of variants of one drawing in a collection.
        most: maximum number of icons of one collection; 0 is no limit.
    """
    done = folder / "rows.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(processes) as pool:
            jobs = [pool.submit(_render, str(catalogue.root), p, variants, most) for p in prefixes]
            parts = [job.result() for job in jobs]
        write(folder, parts)
    return read(folder)


def read(folder: Path) -> Cache:
    """The cache in ``folder``; its pixels are memory-mapped."""
    rows = [_row(row) for row in json.loads((folder / "rows.json").read_text("utf-8"))]
    return Cache(
        rows,
        np.load(folder / "mono.npy", mmap_mode="r"),
        np.load(folder / "colour.npy", mmap_mode="r"),
    )


def joined(first: Cache, second: Cache) -> Cache:
    """One cache of the rows of both, in order."""
    offset = (len(first.mono), len(first.colour))
    moved = [replace(row, slot=row.slot + offset[row.colour]) for row in second.rows]
    return Cache(
        [*first.rows, *moved],
        np.concatenate([first.mono, second.mono]) if len(second.mono) else first.mono,
        np.concatenate([first.colour, second.colour]),
    )


def grey(cache: Cache, row: IconRow) -> Pixels:
    """One icon as [64, 64] luminance on white, for hashing."""
    if not row.colour:
        return np.asarray(255 - cache.mono[row.slot])
    light = on_white(cache.colour[row.slot]).astype(np.float32) @ _LUMA
    return light.astype(np.uint8)


def draw(icons: Iterable[Icon]) -> list[tuple[Icon, Pixels]]:
    """Render icons, leaving out blank ones and those that cannot be drawn."""
    drawn = []
    for icon in icons:
        try:
            pixels = rgba(icon)
        except ValueError:
            continue
        if pixels[..., 3].mean() > 2:
            drawn.append((icon, pixels))
    return drawn


_Part = tuple[list[dict[str, object]], Pixels, Pixels]


def _render(root: str, prefix: str, variants: int, most: int) -> _Part:
    rows: list[dict[str, object]] = []
    planes: tuple[list[Pixels], list[Pixels]] = ([], [])
    selected = choose(Catalogue(Path(root)).icons(prefix), variants)
    for icon, pixels in draw(selected[:most] if most else selected):
        colour = bool(pixels[..., :3][pixels[..., 3] > 0].max() > 0)
        rows.append(
            {
                "collection": prefix,
                "name": icon.name,
                "words": icon.words,
                "style": icon.style,
                "categories": icon.categories,
                "aliases": icon.aliases,
                "colour": colour,
                "slot": 0,
            }
        )
        planes[colour].append(pixels if colour else pixels[..., 3])
    return rows, stack(planes[0], (SIZE, SIZE)), stack(planes[1], (SIZE, SIZE, 4))


def stack(items: Sequence[Pixels], shape: tuple[int, ...]) -> Pixels:
    """The items [N, *shape], also if there are none."""
    return np.stack(items) if items else np.zeros((0, *shape), np.uint8)


def write(folder: Path, parts: list[_Part]) -> None:
    """Write the caches of several renderers as one; gives each row its slot."""
    np.save(folder / "mono.npy", np.concatenate([p[1] for p in parts]))
    np.save(folder / "colour.npy", np.concatenate([p[2] for p in parts]))
    count = [0, 0]
    rows = [row for part in parts for row in part[0]]
    for row in rows:
        kind = bool(row["colour"])
        row["slot"] = count[kind]
        count[kind] += 1
    # `rows.json` marks a complete cache, so it is written last and moved into place.
    partial = folder / "rows.json.part"
    partial.write_text(json.dumps(rows), "utf-8")
    os.replace(partial, folder / "rows.json")


def _row(fields: dict[str, Any]) -> IconRow:
    lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    return IconRow(**{**fields, **lists})


#: Words of user interfaces; drawings with such names are sampled less often.
UI_WORDS = word_set(
    "arrow arrows chevron caret align alignment text format border layout grid column columns "
    "row rows sort filter menu list add remove plus minus close check checkmark checkbox "
    "toggle expand collapse zoom crop undo redo refresh reload sync upload download share "
    "link unlink edit copy paste cut more off disabled slash left right up down top bottom "
    "horizontal vertical previous next skip play pause stop angle circle square rectangle "
    "hexagon octagon letter number alphabet order split merge code api data user users "
    "account login logout wifi signal network cellular file document folder page note form "
    "table cell message chat bubble view window panel sidebar tab screen settings control "
    "insert indent heading paragraph font stroke path vector node corner direction turn move "
    "resize rotate flip percent math equal divide symbol sign emoji git branch commit request "
    "pull server database badge type flow process task status"
)
_PICTORIAL = frozenset(["emojione", "fxemoji", "streamline-emojis", "flat-color-icons"])
_MACHINE_MADE = frozenset(("iconmind",))


def easy_weights(rows: Sequence[IconRow]) -> npt.NDArray[np.float64]:
    """Probability of each row in the first steps: only names shared by at least three sets."""
    variants = Counter((r.collection, r.words) for r in rows)
    drawings = Counter(concept for _, concept in {(r.collection, r.words) for r in rows})
    shared = 3 if max(drawings.values()) > 2 else 1
    raw = [(drawings[r.words] >= shared) / variants[r.collection, r.words] for r in rows]
    return _shares(raw)


def weights(rows: Sequence[IconRow]) -> npt.NDArray[np.float64]:
    """Sampling probability of each row: shared names, objects, emoji and colour get more;
    variants and UI less.
    """
    variants = Counter((r.collection, r.words) for r in rows)
    drawings = Counter(concept for _, concept in {(r.collection, r.words) for r in rows})
    raw = [_weight(r, variants[r.collection, r.words], drawings[r.words]) for r in rows]
    return _shares(raw)


def _shares(raw: Sequence[float]) -> npt.NDArray[np.float64]:
    values = np.asarray(raw, np.float64)
    shares: npt.NDArray[np.float64] = values / values.sum()
    return shares


def _weight(row: IconRow, variants: int, sharing: int) -> float:
    weight: float = variants**-0.7
    if sharing == 1:
        weight *= 0.2
    else:
        weight *= min(1.0, sharing / 4) * sharing**-0.15
    weight *= {1: 3.0, 2: 1.0}.get(len(row.words), 0.4)
    if not UI_WORDS.isdisjoint(row.words):
        weight *= 0.3
    if row.collection in _PICTORIAL:
        weight *= 4
    elif row.colour:
        weight *= 2
    return weight * (0.4 if row.collection in _MACHINE_MADE else 1)


class Batches:
    """An endless stream of batches; batch ``step`` depends only on (seed, step)."""

    def __init__(self, cache: Cache, keep: npt.NDArray[np.int64], size: int, seed: int) -> None:
        self.cache, self.size, self.seed = cache, size, seed
        self.rows = [cache.rows[i] for i in keep]
        self.easy, self.usual = easy_weights(self.rows), weights(self.rows)
        self.named: dict[tuple[str, ...], list[IconRow]] = {}
        for row in self.rows:
            self.named.setdefault(row.words, []).append(row)

    def draw(
        self, step: int, strength: float = 1.0, groups: int = 0
    ) -> tuple[list[IconRow], np.random.Generator]:
        """The rows of a batch, and the generator for the step's other random choices.

        The last 4 x ``groups`` rows are groups of four that share an object: twice the same
        drawing, and two drawings of the same name, mostly from other sets.
        """
        rng = np.random.default_rng((self.seed, step))
        cumulative = np.cumsum((1 - strength) * self.easy + strength * self.usual)
        picks = np.searchsorted(cumulative, rng.random(self.size - 3 * groups) * cumulative[-1])
        sampled = [self.rows[i] for i in picks]
        rows = sampled[: self.size - 4 * groups]
        for row in sampled[self.size - 4 * groups :]:
            same_name = self.named[row.words]
            others = [same_name[rng.integers(len(same_name))] for _ in range(2)]
            rows += [row, row, *others]
        return rows, rng


def pixels(cache: Cache, rows: Sequence[IconRow]) -> tuple[Tensor, Tensor]:
    """Alpha [N, 64, 64] of the black rows, premultiplied RGBA [M, 4, 64, 64] of the coloured ones,
    each in the given order.
    """
    mono = [cache.mono[row.slot] for row in rows if not row.colour]
    colour = [cache.colour[row.slot] for row in rows if row.colour]
    alpha = np.stack(mono) if mono else np.zeros((0, 64, 64), np.uint8)
    rgba = np.stack(colour) if colour else np.zeros((0, 64, 64, 4), np.uint8)
    layers = from_bytes(torch.from_numpy(rgba))
    layers[:, :3] *= layers[:, 3:]
    return torch.from_numpy(alpha).float() / 255, layers


def painted(
    cache: Cache,
    rows: Sequence[IconRow],
    looks: Sequence[Look],
    gen: torch.Generator,
    pose: float = 1.0,
) -> Tensor:
    """The rows painted in their looks, in the given order: [rows, 3, 64, 64] in [0, 1]."""
    # `paint` expects drawings in one ink before those in their own colours.
    order = sorted(range(len(rows)), key=lambda i: rows[i].colour)
    alpha, coloured = pixels(cache, [rows[i] for i in order])
    images = paint(alpha, coloured, [looks[i] for i in order], gen, pose)
    return images[torch.tensor(order).argsort()]


def plain(cache: Cache, rows: Sequence[IconRow]) -> Tensor:
    """Icons without augmentation, black or coloured on white, in the given order: [rows, 3, 64,
    64].
    """
    out = torch.empty(len(rows), 3, 64, 64)
    for line, row in zip(out, rows, strict=True):
        if row.colour:
            layer = pixels(cache, [row])[1][0]
            line.copy_(layer[:3] + 1 - layer[3])
        else:
            line.copy_(1 - torch.from_numpy(cache.mono[row.slot].astype(np.float32)) / 255)
    return out
