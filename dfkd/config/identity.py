"""The fingerprint: a hash of all settings and files that can change a pixel or a label."""

from collections.abc import Mapping
from typing import Any

from dfkd.config.manifest import Manifest
from dfkd.config.plugins import GENERATORS, IMAGE_SOURCES, PROMPT_METHODS, package
from dfkd.config.synthesis import OPTIMISER_KEYS
from dfkd.errors import FingerprintError

SCHEMA = 1
"""Version of the code's results.

It is raised when a change of code changes pixels or labels by more than rounding. Libraries and
processors also change the rounding, so each version records them."""

SIZES = ("images_per_class", "shard_size", "image_size", "precision", "format")
"""Keys of `synthesis` that every source reads."""

REGENERATED = ("salt", "carried.")
"""Beginnings of the keys that dfkd regenerate changes from version to version."""

REGENERATION_KEYS = ("classes", "share")
"""Keys of `regeneration` that select the tasks which are made anew."""


def identity(manifest: Manifest, weights: Mapping[str, str], base: str = "") -> dict[str, Any]:
    """All settings that can change a pixel or a label, as a flat mapping `key.sub -> value`.

    Args:
        manifest: a manifest with one method (`Manifest.with_method`).
        weights: sha256 of each file of weights, configuration or prompts, by role
            (`teacher.weights`, or `generator.diffusers.weights/unet` of a folder). The hash
            replaces the path, so that moving a file changes nothing.
        base: fingerprint of the version whose tasks are carried over by a regeneration; empty
            without one.
    """
    if len(manifest.methods) != 1:
        raise ValueError("a fingerprint belongs to one method; use Manifest.with_method")
    plain, source, name = manifest.as_dict(), manifest.source, manifest.synthesis.source[0]
    sections = {key: plain[key] for key in ("seed", "salt", "classes", "teacher")}
    # A key that the method does not use must not change the identity, or it would force a new run.
    synthesis = plain["synthesis"]
    sections["synthesis"] = {key: synthesis[key] for key in (*SIZES, *source.reads)}
    sections["synthesis"] |= {"source": name, **_own(IMAGE_SOURCES, name, synthesis)}
    if source.follows_prompts:
        (method,), prompts = manifest.prompts.method, plain["prompts"]
        sections["prompts"] = {key: prompts[key] for key in manifest.prompt_settings.reads}
        sections["prompts"] |= {"method": [method]}
        sections["prompts"] |= _own(PROMPT_METHODS, method, prompts)
        kind = manifest.generator.kind
        sections["generator"] = {
            "kind": kind, **_own(GENERATORS, kind, plain["generator"])
        }  # fmt: skip
        if not manifest.generator.settings.optimisation_steps:
            for key in OPTIMISER_KEYS:
                sections["synthesis"].pop(key, None)
    if base:
        regeneration = plain["regeneration"]
        sections["carried"] = {
            "from": base,
            **{key: regeneration[key] for key in REGENERATION_KEYS},
        }
    flat = {"schema": SCHEMA, **flatten(sections)}
    flat.update({f"{role}.sha256": digest for role, digest in weights.items()})
    # A role begins with the key that holds the path of a file or folder, which the hash replaces.
    for role in weights:
        flat.pop(role.partition("/")[0], None)
    return dict(sorted(flat.items()))


def _own(group: str, name: str, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a kind by its name, and the version of its package if that is another."""
    own = dict(plain[name])
    if version := package(group, name):
        own["package"] = version
    return {name: own}


def as_stored(manifest: Manifest, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a manifest with one method, with the weight hashes and base of a stored one.

    It equals the stored one if the settings do. Weight files are not read, which takes long.
    """
    return identity(manifest, weights_of(stored), str(stored.get("carried.from", "")))


def weights_of(identity: Mapping[str, Any]) -> dict[str, str]:
    """The sha256 of each weight file in an identity, by role."""
    suffix = ".sha256"
    return {
        key.removesuffix(suffix): value for key, value in identity.items() if key.endswith(suffix)
    }


def class_names(identity: Mapping[str, Any]) -> list[Any]:
    """The names of the classes of an identity, of which some may have meanings.

    Of an identity that a stranger wrote they may be anything.
    """
    entries = identity.get("classes")
    if not isinstance(entries, list):
        return []
    return [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]


def changed_settings(manifest: Manifest, stored: Mapping[str, Any]) -> list[str]:
    """The keys in which a stored identity differs from a manifest with one method, sorted, without
    those that dfkd regenerate changes from version to version.
    """
    differing = _differing_keys(stored, as_stored(manifest, stored))
    return [key for key in differing if not key.startswith(REGENERATED)]


def _differing_keys(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The keys in which two identities differ, sorted."""
    keys = sorted(stored.keys() | current.keys())
    return [key for key in keys if stored.get(key) != current.get(key)]


def refuse_difference(stored: Mapping[str, Any], current: Mapping[str, Any], where: str) -> None:
    """Raise `FingerprintError`, which names every differing key, if two identities differ."""
    changes = [
        f"{key}: {stored.get(key)!r} there, {current.get(key)!r} here"
        for key in _differing_keys(stored, current)
    ]
    if changes:
        raise FingerprintError(
            f"{where} holds unfinished work of another manifest ({'; '.join(changes)}); "
            "finish it with its own manifest, give another storage.root, or add --abandon"
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
