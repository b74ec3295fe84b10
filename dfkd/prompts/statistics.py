"""Statistics of the diversity and the faithfulness of prompts."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from dfkd.prompts.diversity import effective_number, near_duplicates


def statistics(tables: Iterable[pa.Table], texts: np.ndarray) -> dict[str, Any]:
    """Statistics of the diversity and the faithfulness of a version's prompts, from running sums.

    For unit vectors |sum x|^2 = N + (sum over ordered pairs of x . y), which gives mean cosines
    without the pairs.

    Args:
        tables: the parts in order; they are read one at a time.
        texts: unit embeddings [M, E] of the class prompts.

    Returns:
        `prompts` (their number), `similarity` (mean cosine over all pairs), `similarity_in_class`
        (over pairs within a class), `own_class` (share nearest to their own class text), `twins`
        (share with a near duplicate in their class and part), `vendi` (their effective number).
    """
    texts = texts.astype(np.float64)
    own_class = twins = 0
    sums, counts = np.zeros_like(texts), np.zeros(len(texts))
    gram = np.zeros((texts.shape[1], texts.shape[1]))
    for table in tables:
        embeddings = np.stack(table["embedding"].to_numpy())
        labels = table["class_index"].to_numpy()
        np.add.at(sums, labels, embeddings)
        np.add.at(counts, labels, 1)
        own_class += int(((embeddings @ texts.T).argmax(axis=1) == labels).sum())
        twins += int(near_duplicates(embeddings, labels).sum())
        gram += embeddings.T.astype(np.float64) @ embeddings
    # Ordered pairs, without the N cosines of a prompt with itself; of no pair the mean is 0.
    total, pairs = counts.sum(), (counts * (counts - 1)).sum()
    overall = (np.square(sums.sum(axis=0)).sum() - total) / max(total * (total - 1), 1)
    in_class = (np.square(sums).sum() - total) / max(pairs, 1)
    return {
        "prompts": int(total),
        "similarity": float(overall),
        "similarity_in_class": float(in_class),
        "own_class": float(own_class / max(total, 1)),
        "twins": float(twins / max(total, 1)),
        "vendi": effective_number(gram / max(total, 1)),
    }
