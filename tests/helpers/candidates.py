"""The content of `candidates.json`, made without models."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dfkd.export.choice import Candidates
from dfkd.storage.local import open_storage
from dfkd.utils.strict_json import canonical, read_as

Figures = tuple[Sequence[float], float, float]
"""Means of the seeds in 0-1, ms and MB of a file."""

DOMAINS = {"photo": 60, "line_drawing": 60, "sketch": 60}


def candidate(
    name: str, float32: Figures, int8: Figures, domains: Sequence[str] = tuple(DOMAINS), **more: Any
) -> dict[str, Any]:
    """A candidate; one of several seeds or with `images` is a student."""
    files = {}
    for precision, (means, ms, mb) in (("float32", float32), ("int8", int8)):
        files[precision] = {
            "file": "model.onnx" if precision == "float32" else "model.int8.onnx",
            "bytes": round(mb * 1e6),
            "ms": ms,
            "means": list(means),
            "domains": {domain: list(means) for domain in domains},
        }
    trained = "images" in more
    return {
        "name": name,
        "kind": "student" if trained else "tower",
        "classifier": "distilled" if trained else "zero-shot",
        "model": name,
        "folder": f"candidates/{re.sub('[^A-Za-z0-9_]+', '-', name)}",
        "images": 0,
        "seeds": list(range(len(float32[0]))) if trained else [],
        "students": [f"{name}-s{seed}" for seed in range(len(float32[0]))] if trained else [],
        "parameters": round(float32[2] * 250_000),
        "image_size": 64,
        "gpu_ms": None,
        "files": files,
        **more,
    }


def tree(*candidates: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The content of the file."""
    return {
        "schema": 1,
        "classes": 3,
        "average": "images",
        "measure": "accuracy",
        "source": "bundled",
        "images": DOMAINS,
        "machine": "slow",
        "gpu": None,
        "candidates": list(candidates),
        **more,
    }


def parsed(*candidates: dict[str, Any], **more: Any) -> Candidates:
    """The same as `read_candidates` returns it."""
    return read_as(TypeAdapter(Candidates), canonical(tree(*candidates, **more)))


FOUR = (
    candidate("teacher", ([0.8], 3.2, 21.5), ([0.79], 1.9, 5.6)),
    candidate("teacher text-only", ([0.82], 3.2, 21.5), ([0.8], 1.9, 5.6), classifier="text-only"),
    candidate(
        "timm:test_resnet", ([0.6, 0.62, 0.64], 2.2, 1.5), ([0.59, 0.61, 0.63], 1.4, 0.5), images=48
    ),
    candidate(
        "timm:<b>vit</b>", ([0.5, 0.52, 0.54], 2.6, 1.6), ([0.4, 0.42, 0.44], 2.0, 0.6), images=48
    ),
)
"""Two towers and two students of three seeds; one name would be markup if it were not escaped."""


def put_folders(root: Path, content: dict[str, Any]) -> None:
    """Files of the right sizes in the folder of each candidate."""
    storage = open_storage(str(root))
    for each in content["candidates"]:
        home = storage.child(each["folder"])
        for file in each["files"].values():
            home.put(file["file"], bytes(file["bytes"]))
        home.put("labels.json", each["name"].encode())
