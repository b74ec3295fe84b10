"""A hand-made icon package: every collection that the recipe names, with a few drawings each; and a
folder of clip art.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.lab.miniature.icons import EVALUATION

TRAINING = ("mdi", "ri", "uil")  # the last one is a validation collection
NAMES = ("clock", "guitar", "bell", "anchor", "lamp")
GENERIC = ("simple-icons", "emojione", "game-icons", "healthicons", "gis", "wi")

CROWN = '<path d="M2 20V6l5 6 5-8 5 8 5-6v14z" fill="currentColor"/>'


def drawing(seed: int) -> str:
    """A random polygon and a disc that no other seed draws."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(2, 22, (5, 2)).round(2)
    path = "M" + "L".join(f"{x} {y}" for x, y in points) + "z"
    x, y, r = rng.uniform(6, 18, 3).round(2)
    circle = f'<circle cx="{x}" cy="{y}" r="{r / 4:.2f}" fill="currentColor"/>'
    return f'<path d="{path}" fill="currentColor"/>{circle}'


def described(prefix: str, licence: str = "MIT", **more: Any) -> dict[str, Any]:
    """A collection as `collections.json` describes it."""
    author = {"name": f"author of {prefix}", "url": f"https://example.org/{prefix}"}
    return {
        "name": prefix.upper(),
        "author": author,
        "license": {"title": licence, "spdx": licence},
    } | more


def write(root: Path, more: dict[str, dict[str, str]] | None = None) -> Path:
    """Write the package into `root`; `more` adds drawings (name -> SVG body) to collections."""
    (root / "json").mkdir(parents=True, exist_ok=True)
    release = {"name": "@iconify/json", "version": "2.2.535"}
    (root / "package.json").write_text(json.dumps(release))
    prefixes = (*EVALUATION, *TRAINING)
    (root / "collections.json").write_text(json.dumps({p: described(p) for p in prefixes}))
    for number, prefix in enumerate(prefixes):
        bodies = {name: drawing(100 * number + i) for i, name in enumerate(NAMES)}
        _write_icons(root, prefix, bodies | (more or {}).get(prefix, {}))
    for prefix in GENERIC:
        _write_icons(root, prefix, {"clock": drawing(0)} if prefix != "simple-icons" else {})
    return root


def _write_icons(root: Path, prefix: str, bodies: dict[str, str]) -> None:
    icons = {name: {"body": body} for name, body in bodies.items()}
    record = {"prefix": prefix, "icons": icons, "width": 24, "height": 24}
    (root / "json" / f"{prefix}.json").write_text(json.dumps(record))


def write_clipart(root: Path) -> Path:
    """Write clip art into `root`: a clock and a lamp by one artist, a lamp and a cup by another."""
    art = (("clock", "Anna"), ("lamp", "Anna"), ("lamp", "Bert"), ("cup", "Bert"))
    for number, (title, author) in enumerate(art):
        write_drawing(root / author / f"{title}_{author}.svg", title, author, number)
    return root


def write_drawing(path: Path, title: str, author: str, seed: int, *subjects: str) -> None:
    """Write one SVG file with the metadata of the Open Clip Art Library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    items = "".join(f"<rdf:li>{subject}</rdf:li>" for subject in subjects)
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="urn:cc" xmlns:dc="urn:dc" '
        'xmlns:rdf="urn:rdf" viewBox="0 0 48 24" color="#c33"><metadata>'
        f"<cc:Work rdf:about=''><dc:title>{title}</dc:title>"
        f"<dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>"
        f"<dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>"
        f"</cc:Work></metadata>{drawing(1000 + seed)}</svg>"
    )
