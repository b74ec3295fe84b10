"""Hashes of files and of settings, and the seeds of random numbers, which are hashes too."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's bytes as 64 hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(values: Mapping[str, Any]) -> str:
    """The sha256 of plain values, such as an identity, as 64 hexadecimal digits."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else (sha256)."""
    # A separator that no name holds, so that ("a", "bc") and ("ab", "c") differ.
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
