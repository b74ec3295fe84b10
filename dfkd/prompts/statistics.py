"""How diverse and how faithful prompts are."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from dfkd.prompts.diversity import effective_number, near_duplicates


def statistics(tables: Iterable[pa.Table], texts: np.ndarray) -> dict[str, Any]:
    """How diverse and how faithful the prompts of a version are.

    Args:
        tables: the parts, in order; read one at a time.
        texts: unit embeddings [M, E] of the class prompts.

    Returns:
        `prompts`, `similarity` (mean cosine over all pairs), `similarity_in_class` (over pairs of
        one class), `own_class` (share nearest to its own class text), `near_duplicates` (share with a near
        duplicate in its class and part), `vendi` (effective number of different prompts); for
        contrastive prompts also `initial_*` of the starting points and `loss_first`, `loss_last`
        (means of equation 12).
    """
    now, initial = _Spread(texts), _Spread(texts)
    first: list[float] = []
    last: list[float] = []
    for table in tables:
        labels = table["class_index"].to_numpy()
        now.add(np.stack(table["embedding"].to_numpy()), labels)
        if table["initial"].null_count == 0:
            initial.add(np.stack(table["initial"].to_numpy()), labels)
            first += table["loss_first"].to_pylist()
            last += table["loss_last"].to_pylist()
    result = now.summary()
    if first:
        result |= {f"initial_{key}": value for key, value in initial.summary().items()}
        result |= {"loss_first": float(np.mean(first)), "loss_last": float(np.mean(last))}
    return result


class _Spread:
    """Mean pairwise cosine from running sums: |sum x|^2 = N + 2 * (sum over pairs of x . y)."""

    def __init__(self, texts: np.ndarray) -> None:
        self.texts = texts.astype(np.float64)
        self.sums = np.zeros_like(self.texts)
        self.counts = np.zeros(len(texts))
        self.own = self.twins = 0
        self.gram = np.zeros((texts.shape[1], texts.shape[1]))

    def add(self, embeddings: np.ndarray, labels: np.ndarray) -> None:
        np.add.at(self.sums, labels, embeddings)
        np.add.at(self.counts, labels, 1)
        self.own += int(((embeddings @ self.texts.T).argmax(axis=1) == labels).sum())
        self.twins += int(near_duplicates(embeddings, labels).sum())
        self.gram += embeddings.T.astype(np.float64) @ embeddings

    def summary(self) -> dict[str, Any]:
        total, pairs = self.counts.sum(), (self.counts * (self.counts - 1)).sum()
        everywhere = (np.square(self.sums.sum(axis=0)).sum() - total) / max(total * (total - 1), 1)
        inside = (np.square(self.sums).sum() - total) / max(pairs, 1)
        return {
            "prompts": int(total),
            "similarity": float(everywhere),
            "similarity_in_class": float(inside),
            "own_class": float(self.own / max(total, 1)),
            "twins": float(self.twins / max(total, 1)),
            "vendi": effective_number(self.gram / max(total, 1)),
        }
