"""How a version's prompts differ from one another, from a sample of their embeddings."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dfkd import parquet, strict_json
from dfkd.dataset import PublishedVersion
from dfkd.diversity import pair_cosines, plane, vendi_score
from dfkd.errors import CorruptionError
from dfkd.report.gallery import evenly
from dfkd.storage import MissingObject

MAX_PARTS = 4
"""Files of prompts that are read; each holds a shard's worth of every class."""
MAX_PROMPTS = 420
RESTORE = "restore them, or synthesise into another storage.root"
COLUMNS = ("class_index", "text", "embedding")


@dataclass(frozen=True)
class Prompts:
    """A sample of one version's prompts."""

    method: str
    total: int
    """Prompts of the version."""
    labels: npt.NDArray[Any]
    """Class indices [N]."""
    texts: list[str]
    points: npt.NDArray[Any]
    """First two principal components [N, 2]."""
    within: npt.NDArray[Any]
    """Cosines of the pairs of one class."""
    across: npt.NDArray[Any]
    """Cosines of the pairs of two classes."""
    vendi: float
    statistics: dict[str, Any]
    """The content of prompts.json, which covers all prompts; empty without one."""


def read_prompts(version: PublishedVersion, method: str) -> Prompts | None:
    """The sample of a version; None if it has no prompts.

    Raises:
        CorruptionError: a file of prompts cannot be read, or is not what it should be.
    """
    keys = evenly(list(version.storage.list("prompts/")), MAX_PARTS)
    if not keys:
        return None
    tables = [_part(version, key) for key in keys]
    rows = evenly(
        [(t, i) for t, table in enumerate(tables) for i in range(table.num_rows)], MAX_PROMPTS
    )
    chosen = [table.take([i for owner, i in rows if owner == t]) for t, table in enumerate(tables)]
    table = pa.concat_tables(chosen).sort_by("class_index")
    labels, embeddings = _arrays(version, table)
    within, across = pair_cosines(embeddings, labels)
    return Prompts(
        method=method,
        total=int(version.manifest["samples"]),
        labels=labels,
        texts=[str(text) for text in table["text"].to_pylist()],
        points=plane(embeddings),
        within=within,
        across=across,
        vendi=vendi_score(embeddings),
        statistics=_statistics(version),
    )


def _part(version: PublishedVersion, key: str) -> pa.Table:
    where = version.storage.location(key)
    return parquet.read(version.storage.get(key), COLUMNS, where, RESTORE).select(COLUMNS)


def _arrays(
    version: PublishedVersion, table: pa.Table
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    try:
        labels = table["class_index"].to_numpy().astype(np.int64)
        embeddings = np.stack(table["embedding"].to_numpy()).astype(np.float64)
        usable = np.isfinite(embeddings).all() and (np.abs(embeddings).sum(axis=1) > 0).all()
        known = ((labels >= 0) & (labels < len(version.classes))).all()
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(version, "prompts", str(error)) from None
    if not usable or not known:
        raise _damaged(version, "prompts", "a row is not finite, zero, or of no class")
    return labels, embeddings


def _statistics(version: PublishedVersion) -> dict[str, Any]:
    try:
        found = strict_json.parse(version.storage.get("prompts.json"))
    except (MissingObject, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _damaged(version: PublishedVersion, key: str, problem: str) -> CorruptionError:
    return CorruptionError(
        f"{version.storage.location(key)}: no readable prompts ({' '.join(problem.split())}); "
        f"{RESTORE}"
    )
