"""An evaluation set as a student sees it: what its backbone gives, and a map of that."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dfkd.diversity import plane
from dfkd.domains import Domains, Item
from dfkd.errors import ManifestError
from dfkd.pictures import batch, pixels
from dfkd.student import Student

MOST = 1000
"""Images of a map; of more, evenly spaced ones: its cost grows with the square."""
BATCH = 64
DIGITS = 3
"""Of a place on a map, whose unit means nothing."""


def lay_out(
    student: Student, image_size: int, data: Domains, perplexity: float
) -> tuple[list[Item], list[tuple[float, float]]]:
    """The images that can be read, and where each lies on the map of the student's features."""
    items = data.items[:: -(-len(data.items) // MOST)]
    kept, found = [], []
    for start in range(0, len(items), BATCH):
        chunk = [(item, _read(item, image_size)) for item in items[start : start + BATCH]]
        readable = [(item, image) for item, image in chunk if image is not None]
        if readable:
            kept += [item for item, _ in readable]
            found.append(features(student, [image for _, image in readable]))
    places = tsne(np.concatenate(found), perplexity)
    return kept, [(round(float(x), DIGITS), round(float(y), DIGITS)) for x, y in places]


def _read(item: Item, image_size: int) -> npt.NDArray[np.uint8] | None:
    try:
        return pixels(item.read(), image_size)
    except (OSError, ValueError):
        return None


def tsne(rows: npt.NDArray[np.float32], perplexity: float) -> npt.NDArray[np.floating[Any]]:
    """A map [N, 2] in which neighbours among rows [N, E] are neighbours, the same each time.

    Args:
        perplexity: effective number of neighbours; at most a third of the other rows is used.

    Raises:
        ManifestError: scikit-learn is not installed.
    """
    most = (len(rows) - 1) / 3
    if most < 1:
        return plane(rows)
    # Exact, as the approximation's sums depend on the number of threads.
    maker = _maker()(perplexity=min(perplexity, most), init="pca", random_state=0, method="exact")
    found: npt.NDArray[np.floating[Any]] = maker.fit_transform(rows)
    return found


def require_tsne() -> None:
    """Refuse (`ManifestError`) a machine without scikit-learn, which only maps need."""
    _maker()


def _maker() -> Any:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ManifestError(
            "environment",
            "needs the extra studies",
            "scikit-learn",
            "pip install -e '.[studies]'",
        ) from None
    return TSNE


def features(student: Student, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    """What the backbone gives for images [S, S, 3]: float32 [N, E], before the head."""
    with torch.inference_mode():
        given = torch.from_numpy(batch(images)).to(student.mean.device)
        found = student.features(given)
    array: npt.NDArray[np.float32] = found.float().cpu().numpy()
    return array
