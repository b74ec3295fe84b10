"""Statistics of the diversity and the faithfulness of prompts."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from dfkd.prompts.diversity import effective_number, near_duplicates


def statistics(tables: Iterable[pa.Table], texts: np.ndarray) -> dict[str, Any]:
    """Statistics of the diversity and the faithfulness of a version's prompts.

    Args:
        tables: the parts in order; they are read one at a time.
        texts: unit embeddings [M, E] of the class prompts.

    Returns:
        `prompts` (their number), `similarity` (mean cosine over all pairs), `similarity_in_class`
        (over pairs within a class), `own_class` (share nearest to their own class text), `twins`
        (share with a near duplicate in their class and part), `vendi` (effective number of
        prompts).
    """
    running = _RunningStatistics(texts)
    for table in tables:
        embeddings = np.stack(table["embedding"].to_numpy())
        running.add(embeddings, table["class_index"].to_numpy())
    return running.summary()


class _RunningStatistics:
    """Diversity from running sums, so that memory does not grow with the number of prompts.

    For unit vectors |sum x|^2 = N + (sum over ordered pairs of x . y), which gives mean cosines
    without the pairs. Near duplicates are only searched within a part.
    """

    def __init__(self, texts: np.ndarray) -> None:
        self.texts = texts.astype(np.float64)
        self.sums = np.zeros_like(self.texts)
        self.counts = np.zeros(len(texts))
        self.own_class = self.near_duplicates = 0
        self.gram = np.zeros((texts.shape[1], texts.shape[1]))

    def add(self, embeddings: np.ndarray, labels: np.ndarray) -> None:
        """Add unit embeddings [N, E] of classes [N], which are one part."""
        np.add.at(self.sums, labels, embeddings)
        np.add.at(self.counts, labels, 1)
        self.own_class += int(((embeddings @ self.texts.T).argmax(axis=1) == labels).sum())
        self.near_duplicates += int(near_duplicates(embeddings, labels).sum())
        self.gram += embeddings.T.astype(np.float64) @ embeddings

    def summary(self) -> dict[str, Any]:
        """The values that `statistics` describes, of all prompts added so far."""
        total, pairs = self.counts.sum(), (self.counts * (self.counts - 1)).sum()
        # Ordered pairs, each cosine twice; N is subtracted for the N cosines of a prompt with
        # itself. `max(..., 1)`: without a pair the mean is 0.
        overall = (np.square(self.sums.sum(axis=0)).sum() - total) / max(total * (total - 1), 1)
        in_class = (np.square(self.sums).sum() - total) / max(pairs, 1)
        return {
            "prompts": int(total),
            "similarity": float(overall),
            "similarity_in_class": float(in_class),
            "own_class": float(self.own_class / max(total, 1)),
            "twins": float(self.near_duplicates / max(total, 1)),
            "vendi": effective_number(self.gram / max(total, 1)),
        }
