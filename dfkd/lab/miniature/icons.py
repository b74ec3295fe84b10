"""The icons of the npm package `@iconify/json`: names, licences, and which sets are held out.

A collection is an icon set, known by its prefix, such as `lucide`. `collections.json` in the
unpacked package describes the sets, and `json/<prefix>.json` contains the SVG bodies of one.
"""

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dfkd.errors import ManifestError
from dfkd.lab.miniature.recipe import IconData


def word_set(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


EMOJI = ("twemoji", "noto")
"""The held-out collections of the domain `color_emoji`."""

EVALUATION = (
    *EMOJI,
    "fluent-emoji-high-contrast",
    *("lucide", "tabler"),
    *("fa7-solid", "temaki", "bxs"),
    *("pixelarticons", "streamline-pixel", "pixel"),
    *("streamline-freehand", "streamline-freehand-color"),
)
"""Collections of the bundled evaluation set; never trained on."""

RESERVED = word_set(
    "openmoji fluent-emoji fluent-emoji-flat iconoir feather maki ion memory dinkie-icons"
)
"""Never read at all, because an acceptance test by someone else uses them."""

SIBLINGS = word_set(
    "noto-v1 lucide-lab famicons bx boxicons fa fa-solid fa-regular fa6-solid fa6-regular "
    "fa7-regular la pinhead keyline-icons meteor-icons"
)
"""Sets that share drawings with the sets above, so they are neither trained on nor evaluated on:
earlier versions and extensions of them, a merger of maki and temaki, and sets that started from
Font Awesome 5, lucide or feather."""

VALIDATION = word_set("streamline-kameleon-color vaadin mynaui vadivam uil uis uim uit")
"""Collections whose icons are only used for validation while the models train."""

LICENCES = frozenset(
    ["MIT", "Apache-2.0", "ISC", "BSD-3-Clause", "CC0-1.0", "Unlicense", "CC-BY-3.0", "CC-BY-4.0"]
)
"""Licences of training sets, all permissive: none is non-commercial, copyleft or share-alike, as
OFL is."""

_LOGO_CATEGORIES = frozenset({"Logos", "Programming"})
"""Sets that are left out as a whole: logos, flags, and what is no picture of a thing. `may_train`
makes an exception for `codicon`, the only programming set without logos."""
_FLAG_SETS = frozenset(["cif", "circle-flags", "flag", "flagpack"])
_NOT_PICTURES = frozenset(["svg-spinners", "line-md", "ginetex"])

_TRADEMARKS = "simple-icons"
"""The set whose names are trademarks, and sets of pictures of things. A word in the names of the
latter is not only a trademark."""
_GENERIC = ("emojione", "game-icons", "healthicons", "gis", "wi")

_SKIN = re.compile(r"-(?:(?:medium-)?(?:light|dark)|medium)-skin-tone")
"""Parts of names that describe how an icon is drawn, or number its variants."""
_STYLE_WORDS = word_set(
    "outline outlined filled fill solid bold thin regular duotone twotone linear broken line "
    "sharp rounded round baseline stroke duo flat remix color negative alt variant rounded "
    "24px 12 16 20 24 28 32 48 poly glyph"
)
_ORDINALS = frozenset(["one", "two", "three", "four", "five"])


@dataclass(frozen=True)
class Collection:
    """An icon set, as the package describes it."""

    prefix: str
    title: str
    author: str
    licence: str
    url: str
    category: str
    hidden: bool


@dataclass(frozen=True)
class Drawing:
    """What a collection says about one drawing."""

    collection: str
    """Prefix of the icon set, or one of clip art's two collections."""
    name: str
    """Name in the collection, such as `alarm-clock-bold`."""
    words: tuple[str, ...]
    """Words that name the object: `("alarm", "clock")`."""
    style: tuple[str, ...]
    """Words of the name that describe how it is drawn: `("bold",)`."""
    categories: tuple[str, ...]
    aliases: tuple[str, ...]
    """Other names of the object."""

    @property
    def concept(self) -> str:
        """The object's name as text: `"alarm clock"`."""
        return " ".join(self.words)


@dataclass(frozen=True)
class Icon(Drawing):
    """A drawing of an icon set, with its SVG."""

    body: str
    """The content of the `<svg>` element."""
    box: tuple[float, float, float, float]
    """Left, top, width and height of the view box."""


def package_folder(data: IconData) -> Path:
    """The folder of the unpacked package.

    Raises:
        ManifestError: the folder holds no package, or another release of it.
    """
    folder, release = Path(data.directory), "no package of icons"
    if (folder / "collections.json").is_file() and (folder / "json").is_dir():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            description = json.loads((folder / "package.json").read_bytes())
            release = f"{description['name']}@{description['version']}"
    # The model card names the release, so another one must not be taken for it.
    if release != data.package:
        raise ManifestError(
            "data.directory",
            f"must hold the unpacked {data.package}",
            f"{data.directory} with {release}",
            "give its folder; manifests/pretrain.yaml says how to get it",
        )
    return folder


class Catalogue:
    """Reads the unpacked package at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def collections(self) -> dict[str, Collection]:
        """Every collection of the package by its prefix."""
        described = json.loads((self.root / "collections.json").read_text("utf-8"))
        return {
            prefix: Collection(
                prefix=prefix,
                title=info["name"],
                author=info["author"]["name"],
                licence=info["license"].get("spdx", info["license"]["title"]),
                url=info["author"].get("url", info["license"].get("url", "")),
                category=info.get("category", ""),
                hidden=bool(info.get("hidden")),
            )
            for prefix, info in described.items()
        }

    def training(self) -> list[Collection]:
        """The collections for training and validation, sorted by prefix."""
        return [c for _, c in sorted(self.collections.items()) if may_train(c)]

    @cached_property
    def trademarks(self) -> frozenset[str]:
        """Words that occur in icon names only as trademarks."""
        generic = {w for p in _GENERIC for name in self._raw(p)["icons"] for w in name.split("-")}
        return frozenset(n for n in self._raw(_TRADEMARKS)["icons"] if len(n) > 2) - generic

    def icons(self, prefix: str) -> Iterator[Icon]:
        """Yield the usable icons of one collection, sorted by name.

        Trademarks, flags, hidden icons and icons without a word in their name are left out.
        """
        raw = self._raw(prefix)
        labels: dict[str, tuple[str, ...]] = {}
        for category, members in raw.get("categories", {}).items():
            for name in members:
                labels[name] = (*labels.get(name, ()), category)
        aliases: dict[str, list[str]] = {}
        for alias, target in raw.get("aliases", {}).items():
            aliases.setdefault(target["parent"], []).append(alias)
        for name in sorted(raw["icons"]):
            entry = raw["icons"][name]
            categories = labels.get(name, ())
            if entry.get("hidden") or self._is_logo_or_flag(name, categories):
                continue
            words, style = split_name(name, raw)
            if not any(w.isalpha() and len(w) > 1 for w in words):
                continue
            names = tuple(" ".join(split_name(a, raw)[0]) for a in aliases.get(name, ()))
            # The icon's own view box, then that of its set, then the format's.
            left, top, width, height = (
                float(entry.get(key, raw.get(key, default)))
                for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
            )
            box = left, top, width, height
            yield Icon(prefix, name, words, style, categories, names, entry["body"], box)

    def _raw(self, prefix: str) -> dict[str, Any]:
        """The content of a collection's file."""
        data: dict[str, Any] = json.loads((self.root / f"json/{prefix}.json").read_text("utf-8"))
        return data

    def _is_logo_or_flag(self, name: str, categories: Iterable[str]) -> bool:
        kinds = " ".join(categories).lower()
        if any(k in kinds for k in ("brand", "logo", "social", "flags")):
            return True
        words = name.split("-")
        marks = {"logo", "logos", "brand", "brands"} | self.trademarks
        # "flag-outline" is a picture of a flag; "flag-united-states" is a flag.
        return (words[0] == "flag" and len(words) > 2) or not marks.isdisjoint(words)


def may_train(collection: Collection) -> bool:
    """Whether a collection may be used for training or validation."""
    held_out = RESERVED | SIBLINGS | {*EVALUATION}
    return (
        collection.prefix not in held_out | _FLAG_SETS | _NOT_PICTURES
        and collection.licence in LICENCES
        and not collection.hidden
        and not collection.prefix.endswith("-brands")
        and (collection.category not in _LOGO_CATEGORIES or collection.prefix == "codicon")
    )


def split_name(name: str, raw: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split an icon's name into words of the object and words of the style.

    Args:
        raw: the content of the collection's file, which lists the prefixes and suffixes that stand
            for a style in this collection.
    """
    name = _SKIN.sub("", name)
    style: list[str] = []
    # Longest first: "-outline-rounded" must not be taken for "-rounded".
    for prefix in sorted(raw.get("prefixes", {}), key=len, reverse=True):
        if prefix and name.startswith(prefix + "-"):
            name, style = name[len(prefix) + 1 :], prefix.split("-")
            break
    for suffix in sorted(raw.get("suffixes", {}), key=len, reverse=True):
        if suffix and name.endswith("-" + suffix):
            name, style = name[: -len(suffix) - 1], style + suffix.split("-")
            break
    # Then any style words and numbers that are left at the end.
    words = name.replace("_", "-").split("-")
    strip = _STYLE_WORDS | (_ORDINALS if raw["prefix"].startswith("icon-park") else frozenset())
    while len(words) > 1 and (words[-1] in strip or words[-1].isdigit()):
        style.append(words.pop())
    # Variants are numbered at the end of a word: "clock2".
    words = [re.sub(r"(?<=[a-z]{3})\d+$", "", w) for w in words]
    return tuple(words), tuple(w for w in style if w.isalpha() and w != "alt")


def choose(icons: Iterable[Icon], per_drawing: int) -> list[Icon]:
    """At most `per_drawing` variants of each drawing of one set.

    Variants, such as weights, sizes and skin tones, have the same words for the object.
    """
    drawings: dict[tuple[str, ...], list[Icon]] = {}
    for icon in icons:
        drawings.setdefault(icon.words, []).append(icon)
    return [i for group in drawings.values() for i in sorted(group, key=shuffle_key)[:per_drawing]]


def shuffle_key(drawing: Drawing) -> bytes:
    """A sort key that mixes collections and names, and gives the same order on every machine."""
    return hashlib.sha256(f"{drawing.collection}:{drawing.name}".encode()).digest()


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
"""Words of user interfaces, and of shapes and signs in general."""


def object_nouns(rows: Sequence[Drawing]) -> frozenset[str]:
    """Words that name an object: one-word names that occur in at least three drawings' names.

    Words of user interfaces are left out.
    """
    counts = Counter(word for row in rows for word in set(row.words))
    single = {row.words[0] for row in rows if len(row.words) == 1}
    return frozenset(word for word in single if counts[word] > 2) - UI_WORDS


def common_nouns(rows: Sequence[Drawing], count: int) -> list[str]:
    """The `count` most frequent one-word names, sorted, without words of user interfaces."""
    seen = Counter(r.concept for r in rows if len(r.words) == 1)
    names = [n for n, _ in seen.most_common() if n.isalpha() and len(n) > 2 and n not in UI_WORDS]
    return sorted(names[:count])
