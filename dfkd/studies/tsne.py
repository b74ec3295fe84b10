"""Maps of a domain in a student's feature space, before and after few-shot training."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dfkd.config.distillation import FewShot
from dfkd.errors import ManifestError
from dfkd.evaluation.few_shot_split import split_domain
from dfkd.evaluation.few_shot_tuning import LabelledImages, features_of, fine_tune, from_distances
from dfkd.models.student import Student
from dfkd.prompts.diversity import plane

MAX_IMAGES = 1000
"""Maximum number of images on a map, evenly spaced: exact t-SNE costs grow with its square."""
BATCH = 64
DIGITS = 3
"""Decimals of coordinates, which have no unit, and of silhouettes."""


@dataclass(frozen=True)
class TsneMap:
    """Positions of a domain's images in two dimensions for one student."""

    shots: int
    """Training images of each class; 0 before any training."""
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    """Class index of each point."""
    taught: tuple[bool, ...]
    """Whether few-shot training uses the image; the same in the map before and after it."""
    silhouette: float
    """Silhouette of the classes among the features of the images not trained on, -1 to 1; higher
    values mean more compact, better separated classes.
    """


def before_and_after(
    student: Student,
    images: LabelledImages,
    classes: tuple[str, ...],
    domain: str,
    config: FewShot,
    shots: int,
    perplexity: float,
) -> Iterator[TsneMap]:
    """Yield the maps of a domain's images before and after few-shot training.

    Args:
        student: a student that answers with distances.
        images: all images of the domain.
        config: of the training; its first seed also draws the training images.
        shots: training images of each class; a class with too few keeps one image for testing.
        perplexity: as for `tsne`.
    """
    seed = config.seeds[0]
    split = split_domain(images.labels.tolist(), classes, domain, shots, seed)
    train = torch.tensor(split.train)
    # Both maps show the same images, so train first and embed with both models.
    tuned = from_distances(student)
    fine_tune(
        tuned, LabelledImages(images.pixels[train], images.labels[train]), config, seed, "student"
    )
    shown_rows = torch.arange(len(images))[:: -(-len(images) // MAX_IMAGES)]
    labels, taught = images.labels[shown_rows].numpy(), torch.isin(shown_rows, train).numpy()
    for training_shots, model in ((0, student), (shots, tuned)):
        rows = features_of(model, images.pixels, shown_rows, BATCH).cpu().numpy()
        yield TsneMap(
            training_shots,
            tuple(
                (round(float(x), DIGITS), round(float(y), DIGITS))
                for x, y in tsne(rows, perplexity)
            ),
            tuple(labels.tolist()),
            tuple(taught.tolist()),
            round(silhouette(rows[~taught], labels[~taught]), DIGITS),
        )


def silhouette(rows: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """The mean over images of (b - a) / max(a, b).

    Here a is the image's mean distance to the others of its class, and b that to the nearest other
    class. An image that is alone in its class counts as 0. Returns 0 if there are fewer than two
    classes, or only classes of one image.
    """
    from sklearn.metrics import silhouette_score

    if not 1 < len(set(labels.tolist())) < len(labels):
        return 0.0
    return float(silhouette_score(rows, labels))


def tsne(rows: npt.NDArray[np.float32], perplexity: float) -> npt.NDArray[np.floating[Any]]:
    """A two-dimensional map [N, 2] of rows [N, E] that keeps neighbours together; it is
    deterministic.

    Args:
        perplexity: effective number of neighbours; limited to a third of the other rows.

    Raises:
        ManifestError: scikit-learn is not installed.
    """
    limit = (len(rows) - 1) / 3
    if limit < 1:
        return plane(rows)
    # Exact, because the approximation's sums depend on the number of threads.
    embedder = _maker()(
        perplexity=min(perplexity, limit), init="pca", random_state=0, method="exact"
    )
    points: npt.NDArray[np.floating[Any]] = embedder.fit_transform(rows)
    return points


def require_tsne() -> None:
    """Refuse (`ManifestError`) a machine without scikit-learn, which only these maps need."""
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
