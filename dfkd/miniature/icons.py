"""The icons of the miniature world: collections, hold-outs, licences, names and styles.

The source is the unpacked npm package ``@iconify/json``: ``collections.json`` describes the sets,
and ``json/<prefix>.json`` contains the SVG bodies. This module does not render; see ``rendering``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


def word_set(text: str) -> frozenset[str]:
    """The words of a text as a set."""
    return frozenset(text.split())


#: Never trained on: the collections of the bundled evaluation set, by the kind of their drawings.
EVALUATION: dict[str, tuple[str, ...]] = {
    "color_emoji": ("twemoji", "noto"),
    "mono_emoji": ("fluent-emoji-high-contrast",),
    "outline": ("lucide", "tabler"),
    "solid": ("fa7-solid", "temaki", "bxs"),
    "pixel": ("pixelarticons", "streamline-pixel", "pixel"),
    "freehand": ("streamline-freehand", "streamline-freehand-color"),
}

#: The held-out collections that draw in colours of their own.
EMOJI = EVALUATION["color_emoji"]

#: Never read at all: kept for an acceptance test by someone else.
RESERVED = word_set(
    "openmoji fluent-emoji fluent-emoji-flat iconoir feather maki ion memory dinkie-icons"
)

#: Share drawings with the sets above, so they are neither trained on nor evaluated on. The second
#: line goes beyond the known siblings: redrawn Font Awesome 5, a merger of maki and temaki, sets
#: that started from lucide or feather, and the other weights of streamline-freehand's originals.
SIBLINGS = word_set(
    "noto-v1 lucide-lab famicons bx boxicons fa fa-solid fa-regular fa6-solid fa6-regular "
    "fa7-regular la pinhead keyline-icons meteor-icons"
)

#: Whole collections of the training side that only choose checkpoints: unseen while training.
VALIDATION = word_set("streamline-kameleon-color vaadin mynaui vadivam uil uis uim uit")

#: Permissive licences. Non-commercial, copyleft and share-alike ones (also OFL) are left out.
LICENCES = frozenset(
    ["MIT", "Apache-2.0", "ISC", "BSD-3-Clause", "CC0-1.0", "Unlicense", "CC-BY-3.0", "CC-BY-4.0"]
)

#: Sets of logos or flags, whole; ``codicon`` is the only programming set without logos.
_LOGO_CATEGORIES = frozenset({"Logos", "Programming"})
_FLAG_SETS = frozenset(["cif", "circle-flags", "flag", "flagpack"])
_NOT_PICTURES = frozenset(["svg-spinners", "line-md", "ginetex"])

#: Names of trademarks come from this set; a word that these generic sets use is not a trademark.
_TRADEMARKS = "simple-icons"
_GENERIC = ("emojione", "game-icons", "healthicons", "gis", "wi")

_SKIN = re.compile(r"-(?:(?:medium-)?(?:light|dark)|medium)-skin-tone")
_STYLE_WORDS = word_set(
    "outline outlined filled fill solid bold thin regular duotone twotone linear broken line "
    "sharp rounded round baseline stroke duo flat remix color negative alt variant rounded "
    "24px 12 16 20 24 28 32 48 poly glyph"
)
_ORDINALS = frozenset(["one", "two", "three", "four", "five"])


@dataclass(frozen=True)
class Collection:
    """One icon set as the package describes it."""

    prefix: str
    title: str
    author: str
    licence: str
    url: str
    category: str
    palette: bool
    hidden: bool
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Icon:
    """One icon: ``words`` name the object, ``style`` describes how it is drawn, ``body`` is SVG."""

    collection: str
    name: str
    words: tuple[str, ...]
    style: tuple[str, ...]
    categories: tuple[str, ...]
    aliases: tuple[str, ...]
    body: str
    box: tuple[float, float, float, float]

    @property
    def concept(self) -> str:
        """The object's name as text, for example ``"alarm clock"``."""
        return " ".join(self.words)


class Catalogue:
    """Reads the unpacked package at ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def collections(self) -> dict[str, Collection]:
        """Every collection of the package by its prefix."""
        described = json.loads((self.root / "collections.json").read_text("utf-8"))
        return {prefix: _collection(prefix, info) for prefix, info in described.items()}

    def training(self) -> list[Collection]:
        """Collections that may be used for training, including validation, in a stable order."""
        return [c for _, c in sorted(self.collections.items()) if may_train(c)]

    @cached_property
    def trademarks(self) -> frozenset[str]:
        """Words that are only used as the name of a trademark."""
        generic = {w for p in _GENERIC for name in self._raw(p)["icons"] for w in name.split("-")}
        return frozenset(n for n in self._raw(_TRADEMARKS)["icons"] if len(n) > 2) - generic

    def icons(self, prefix: str) -> Iterator[Icon]:
        """The usable icons of one collection: no trademarks, flags or hidden icons.

        Raises:
            ValueError: the collection is reserved; nothing in the project may read it.
        """
        if prefix in RESERVED:
            raise ValueError(f"collection {prefix} is reserved for acceptance: do not read it")
        raw = self._raw(prefix)
        labels = _labels_by_icon(raw)
        aliases: dict[str, list[str]] = {}
        for alias, target in raw.get("aliases", {}).items():
            aliases.setdefault(target["parent"], []).append(alias)
        for name in sorted(raw["icons"]):
            entry = raw["icons"][name]
            categories = labels.get(name, ())
            if entry.get("hidden") or self._is_mark(name, categories):
                continue
            words, style = split_name(name, raw)
            if not any(w.isalpha() and len(w) > 1 for w in words):
                continue
            names = tuple(" ".join(split_name(a, raw)[0]) for a in aliases.get(name, ()))
            yield Icon(
                prefix, name, words, style, categories, names, entry["body"], _view_box(entry, raw)
            )

    def _raw(self, prefix: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.root / f"json/{prefix}.json").read_text("utf-8"))
        return data

    def _is_mark(self, name: str, categories: Iterable[str]) -> bool:
        kinds = " ".join(categories).lower()
        if any(k in kinds for k in ("brand", "logo", "social", "flags")):
            return True
        words = name.split("-")
        marked = {"logo", "logos", "brand", "brands"} | self.trademarks
        return (words[0] == "flag" and len(words) > 2) or not marked.isdisjoint(words)


def may_train(collection: Collection) -> bool:
    """Whether the teacher and the generator may be trained on this collection."""
    held_out = {p for prefixes in EVALUATION.values() for p in prefixes} | RESERVED | SIBLINGS
    return (
        collection.prefix not in held_out | _FLAG_SETS | _NOT_PICTURES
        and collection.licence in LICENCES
        and not collection.hidden
        and not collection.prefix.endswith("-brands")
        and (collection.category not in _LOGO_CATEGORIES or collection.prefix == "codicon")
    )


def split_name(name: str, raw: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """An icon's name as (words of the object, words of the style), using the set's own affixes."""
    name = _SKIN.sub("", name)
    style: list[str] = []
    for prefix in sorted(raw.get("prefixes", {}), key=len, reverse=True):
        if prefix and name.startswith(prefix + "-"):
            name, style = name[len(prefix) + 1 :], prefix.split("-")
            break
    for suffix in sorted(raw.get("suffixes", {}), key=len, reverse=True):
        if suffix and name.endswith("-" + suffix):
            name, style = name[: -len(suffix) - 1], style + suffix.split("-")
            break
    words = name.replace("_", "-").split("-")
    strip = _STYLE_WORDS | (_ORDINALS if raw["prefix"].startswith("icon-park") else frozenset())
    while len(words) > 1 and (words[-1] in strip or words[-1].isdigit()):
        style.append(words.pop())
    words = [re.sub(r"(?<=[a-z]{3})\d+$", "", w) for w in words]
    return tuple(words), tuple(w for w in style if w.isalpha() and w != "alt")


def choose(icons: Iterable[Icon], per_drawing: int) -> list[Icon]:
    """At most ``per_drawing`` variants (weights, sizes, skin tones) of each drawing in a set."""
    drawings: dict[tuple[str, ...], list[Icon]] = {}
    for icon in icons:
        drawings.setdefault(icon.words, []).append(icon)
    return [i for group in drawings.values() for i in sorted(group, key=_shuffled)[:per_drawing]]


def _shuffled(icon: Icon) -> bytes:
    return hashlib.sha256(f"{icon.collection}:{icon.name}".encode()).digest()


def _collection(prefix: str, info: dict[str, Any]) -> Collection:
    return Collection(
        prefix=prefix,
        title=info["name"],
        author=info["author"]["name"],
        licence=info["license"].get("spdx", info["license"]["title"]),
        url=info["author"].get("url", info["license"].get("url", "")),
        category=info.get("category", ""),
        palette=bool(info.get("palette")),
        hidden=bool(info.get("hidden")),
        tags=tuple(info.get("tags", ())),
    )


def _labels_by_icon(raw: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    labels: dict[str, tuple[str, ...]] = {}
    for category, names in raw.get("categories", {}).items():
        for name in names:
            labels[name] = (*labels.get(name, ()), category)
    return labels


def _view_box(entry: dict[str, Any], raw: dict[str, Any]) -> tuple[float, float, float, float]:
    def value(key: str, default: float) -> float:
        return float(entry.get(key, raw.get(key, default)))

    return value("left", 0), value("top", 0), value("width", 16), value("height", 16)
