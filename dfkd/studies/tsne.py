"""A domain as a student sees it, before and after few-shot training: maps of its features."""

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
from dfkd.prompts.diversity import principal_plane

MAX_IMAGES = 1000
"""Images of a map; of more, evenly spaced ones: its cost grows with the square."""
BATCH = 64
DIGITS = 3
"""Of a place on a map, whose unit means nothing, and of a silhouette."""


@dataclass(frozen=True)
class TsneMap:
    """Where the images of a domain lie for one student."""

    shots: int
    """Images of each class that it was trained on; 0 before any training."""
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    """Class index of each point."""
    taught: tuple[bool, ...]
    """Whether the training learns from the image; the same before and after it."""
    silhouette: float
    """Of the classes among the features of the other images, -1 to 1: the higher, the more compact
    and the farther apart they are."""


def before_and_after(
    student: Student,
    images: LabelledImages,
    classes: tuple[str, ...],
    domain: str,
    config: FewShot,
    shots: int,
    perplexity: float,
) -> Iterator[TsneMap]:
    """A domain's images before and after few-shot training.

    Args:
        student: that gives distances.
        images: all of the domain.
        config: of the training; its first seed is that of the draw.
        shots: training images of each class; of a class with too few, all but one.
        perplexity: as for `tsne`.
    """
    seed = config.seeds[0]
    drawn = split_domain(images.labels.tolist(), classes, domain, shots, seed)
    train = torch.tensor(drawn.train)
    tuned = from_distances(student)
    fine_tune(
        tuned, LabelledImages(images.pixels[train], images.labels[train]), config, seed, "student"
    )
    shown = torch.arange(len(images))[:: -(-len(images) // MAX_IMAGES)]
    labels, taught = images.labels[shown].numpy(), torch.isin(shown, train).numpy()
    for learned, model in ((0, student), (shots, tuned)):
        rows = features_of(model, images.pixels, shown, BATCH).cpu().numpy()
        yield TsneMap(
            learned,
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

    a is an image's mean distance to the others of its class, b that to the nearest other class. An
    image that is alone in its class counts as 0, and so does everything where no two classes are.
    """
    from sklearn.metrics import silhouette_score

    if not 1 < len(set(labels.tolist())) < len(labels):
        return 0.0
    return float(silhouette_score(rows, labels))


def tsne(rows: npt.NDArray[np.float32], perplexity: float) -> npt.NDArray[np.floating[Any]]:
    """A map [N, 2] in which neighbours among rows [N, E] are neighbours, the same each time.

    Args:
        perplexity: effective number of neighbours; at most a third of the other rows is used.

    Raises:
        ManifestError: scikit-learn is not installed.
    """
    most = (len(rows) - 1) / 3
    if most < 1:
        return principal_plane(rows)
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
