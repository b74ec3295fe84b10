"""Rendering of icons, and the cache of rendered drawings, from which all images are painted."""

import io
import json
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import resvg_py
import torch
from PIL import Image
from torch import Tensor

from dfkd.lab.miniature.drawings.icons import Catalogue, Drawing, Icon, choose
from dfkd.lab.miniature.looks.fields import SIZE
from dfkd.lab.miniature.looks.look import Look, LookSampler
from dfkd.lab.miniature.looks.painting import paint
from dfkd.lab.miniature.work_folder import write_whole
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
    rows = [_row(row) for row in json.loads((folder / "rows.json").read_text("utf-8"))]
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


def _row(fields: dict[str, Any]) -> DrawingRow:
    """The row of an entry of `rows.json`, whose lists become tuples, so that it is hashable."""
    lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    return DrawingRow(**{**fields, **lists})


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
