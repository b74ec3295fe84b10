"""The fingerprint: the hash of everything that can change a pixel or a label."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfkd.config.manifest import Manifest
from dfkd.config.methods import expand_methods, prompt_method
from dfkd.errors import FingerprintError

SCHEMA = 1
"""Raised whenever a change of code changes a pixel or a label that the same manifest gives by more
than rounding, which libraries and processors change as well: each version records those."""

SECTIONS = ("seed", "salt", "classes", "teacher", "generator", "prompts", "synthesis")

COMMON_SYNTHESIS_KEYS = (
    "method",
    "images_per_class",
    "shard_size",
    "image_size",
    "precision",
    "format",
)
"""Keys of `synthesis` that methods without latents use."""

REGENERATION_KEYS = ("classes", "share")
"""Keys of `regeneration` that say which tasks are not carried over."""


def identity(manifest: Manifest, weights: Mapping[str, str], base: str = "") -> dict[str, Any]:
    """All that can change a pixel or a label: the flat `key.sub -> value` view that is hashed.

    Args:
        manifest: of one method (`Manifest.with_method`).
        weights: sha256 of each weight or configuration file, by role (`teacher.weights`, ...); a
            hash stands in for the path it was read from, so that moving a file changes nothing.
        base: fingerprint of the version that all but the regenerated tasks are carried over from.
    """
    if len(manifest.methods) != 1:
        raise ValueError("a fingerprint belongs to one method; use Manifest.with_method")
    plain = manifest.as_dict()
    chosen = {key: plain[key] for key in SECTIONS}
    if prompt_method(manifest.method):
        _drop_unused_by_latents(chosen)
    else:
        _keep_used_by_inversion(chosen, plain["inversion"])
    if base:
        regeneration = plain["regeneration"]
        chosen["carried"] = {"from": base, **{key: regeneration[key] for key in REGENERATION_KEYS}}
    flat = {"schema": SCHEMA, **_flatten(chosen)}
    flat.update({f"{role}.sha256": digest for role, digest in weights.items()})
    for role in weights:
        flat.pop(role, None)
    return dict(sorted(flat.items()))


def _drop_unused_by_latents(chosen: dict[str, Any]) -> None:
    """Drop what a method with latents does not depend on."""
    if chosen["prompts"]["method"] != ["contrastive"]:
        del chosen["prompts"]["contrastive"]
    del chosen["synthesis"]["method"]


def _keep_used_by_inversion(chosen: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Keep of a method without latents its own settings, and those that all methods share."""
    (method,) = chosen["synthesis"]["method"]
    sections = {method} if method == "deepinversion" else {method, "student"}
    chosen["inversion"] = {key: settings[key] for key in sections}
    chosen["prompts"] = {"method": ["vanilla"]}
    chosen["synthesis"] = {key: chosen["synthesis"][key] for key in COMMON_SYNTHESIS_KEYS}
    del chosen["generator"]


def method_of(identity: Mapping[str, Any]) -> str:
    """What the method of an identity is called."""
    way = identity.get("synthesis.method", ["latent"])
    weights = identity.get("synthesis.batch_norm_weight", [0.0])
    return ", ".join(expand_methods(way, identity.get("prompts.method", ["unknown"]), weights))


def fingerprint(identity: Mapping[str, Any]) -> str:
    """The sha256 of an identity as 64 hexadecimal digits."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def refuse_difference(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Raise `FingerprintError` naming every key in which two identities differ, if any does."""
    keys = sorted(found.keys() | wanted.keys())
    changes = [
        f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} here"
        for key in keys
        if found.get(key) != wanted.get(key)
    ]
    if changes:
        raise FingerprintError(
            f"{where} holds unfinished work of another manifest ({'; '.join(changes)}); "
            "finish it with its own manifest, give another storage.root, or add --abandon"
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's bytes as 64 hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
