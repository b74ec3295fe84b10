"""Icons to pixels, and the cache of rendered pixels that both recipes read."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import resvg_py
from PIL import Image

from dfkd.miniature.icons import Catalogue, Icon, choose

SIZE = 64
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
Pixels = npt.NDArray[np.uint8]


def svg(icon: Icon, margin: float = 0.04) -> str:
    """A square SVG document of the icon in black, its own view box centred with a small margin."""
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
    """[..., 64, 64, 4] RGBA over white as [..., 64, 64, 3]."""
    alpha = pixels[..., 3:].astype(np.uint16)
    mixed = pixels[..., :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


@dataclass(frozen=True)
class Row:
    """One line of the cache's index; ``slot`` counts within the array that ``colour`` selects."""

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
    """Rendered icons: alpha [N, 64, 64] of the black ones, RGBA [M, 64, 64, 4] of the others."""

    rows: list[Row]
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
    """Render the collections into ``folder`` (or read what an earlier call left there).

    Args:
        variants: how many variants of one drawing of one collection are kept.
        most: how many icons of one collection are drawn; 0 is all.
    """
    done = folder / "rows.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(processes) as pool:
            jobs = [pool.submit(_render, str(catalogue.root), p, variants, most) for p in prefixes]
            parts = [job.result() for job in jobs]
        _write(folder, parts)
    return read(folder)


def read(folder: Path) -> Cache:
    """The cache that ``build`` left in ``folder``; its pixels stay on disk until used."""
    rows = [_row(row) for row in json.loads((folder / "rows.json").read_text("utf-8"))]
    return Cache(
        rows,
        np.load(folder / "mono.npy", mmap_mode="r"),
        np.load(folder / "colour.npy", mmap_mode="r"),
    )


def grey(cache: Cache, row: Row) -> Pixels:
    """One icon as [64, 64] luminance on white, for hashing."""
    if not row.colour:
        return np.asarray(255 - cache.mono[row.slot])
    light = on_white(cache.colour[row.slot]).astype(np.float32) @ _LUMA
    return light.astype(np.uint8)


def draw(icons: Iterable[Icon]) -> list[tuple[Icon, Pixels]]:
    """Render icons, leaving out what is blank or cannot be drawn."""
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
    chosen = choose(Catalogue(Path(root)).icons(prefix), variants)
    for icon, pixels in draw(chosen[:most] if most else chosen):
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
    return rows, _stack(planes[0], (SIZE, SIZE)), _stack(planes[1], (SIZE, SIZE, 4))


def _stack(items: list[Pixels], shape: tuple[int, ...]) -> Pixels:
    return np.stack(items) if items else np.zeros((0, *shape), np.uint8)


def _write(folder: Path, parts: list[_Part]) -> None:
    np.save(folder / "mono.npy", np.concatenate([p[1] for p in parts]))
    np.save(folder / "colour.npy", np.concatenate([p[2] for p in parts]))
    count = [0, 0]
    rows = [row for part in parts for row in part[0]]
    for row in rows:
        kind = bool(row["colour"])
        row["slot"] = count[kind]
        count[kind] += 1
    partial = folder / "rows.json.part"
    partial.write_text(json.dumps(rows), "utf-8")
    os.replace(partial, folder / "rows.json")


def _row(fields: dict[str, Any]) -> Row:
    lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    return Row(**{**fields, **lists})
