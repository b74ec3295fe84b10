"""Maps of an embedding: a domain in a student's feature space before and after few-shot training.

A map is a t-SNE of the backbone's features in two dimensions. scikit-learn, which makes it, comes
with the extra `studies`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dfkd.errors import ManifestError
from dfkd.evaluation.data import Domains
from dfkd.lab.few_shot.run import read_domain
from dfkd.lab.few_shot.settings import FewShot
from dfkd.lab.few_shot.tuning import (
    LabelledImages,
    features_of,
    from_distances,
    split_domain,
    tune_on_split,
)
from dfkd.lab.studies.results import Map, StudyCells
from dfkd.lab.studies.study import Adaptation, Study
from dfkd.models.student import Student, load_student
from dfkd.storage import layout
from dfkd.storage.local import open_storage
from dfkd.utils.device import pick_device

MAX_IMAGES = 1000
"""Maximum number of points of a map, because its cost grows with their square. If there are more
images, evenly spaced ones are shown."""
PERPLEXITY = 30.0
"""Effective number of neighbours of a point; at most a third of the others, if there are few."""
DIGITS = 3
"""Decimals of a position, whose unit means nothing, and of a silhouette."""


def maps(study: Study, data: Domains, study_cells: StudyCells, threads: int = 0) -> Iterator[Map]:
    """Yield the maps of each row's first student, before and after few-shot training.

    Args:
        study: of kind `embedding`; any other kind has no maps.
        data: the evaluation data, with the domain of `adaptation`.
        study_cells: the finished cells; a row whose first one is not finished has no maps.
        threads: threads that decode images; 0 means one for each processor.
    """
    adaptation = study.described.adaptation
    if adaptation is None:
        return
    for row, finished in study_cells.students.items():
        # One student, because positions on several maps have no mean.
        if finished and finished[0].seed == study.rows[row][0].seed:
            manifest = study.rows[row][0].home
            folder = layout.student(finished[0].outcome.model)
            student, _ = load_student(
                open_storage(manifest.storage.root).child(folder), pick_device()
            )
            domain = read_domain(manifest, data, adaptation.domain, threads)
            yield from before_and_after(row, student, domain.images, data.classes, adaptation)


def before_and_after(
    row: str,
    student: Student,
    images: LabelledImages,
    classes: Sequence[str],
    adaptation: Adaptation,
) -> Iterator[Map]:
    """Yield the maps of a domain before and after few-shot training, of the same images.

    Args:
        row: the student's row.
        student: gives distances, as distillation leaves it.
        images: all images of the domain.
        classes: names by index.
        adaptation: the domain's name, and the settings of the training.
    """
    shots, seed = adaptation.shots, 0
    config = FewShot(epochs=adaptation.epochs, learning_rate=adaptation.learning_rate)
    split = split_domain(images.labels.tolist(), classes, adaptation.domain, shots, seed)
    tune_on_split(tuned := from_distances(student), images, split, config, "student")
    # The same images in both maps, so that a reader can follow each of them.
    shown = torch.arange(len(images))[:: -(-len(images) // MAX_IMAGES)]
    labels, taught = (
        images.labels[shown].numpy(),
        torch.isin(shown, torch.tensor(split.train)).numpy(),
    )
    for trained_shots, model in ((0, student), (shots, tuned)):
        features = features_of(model, images.pixels, shown).cpu().numpy()
        positions = tsne(features)
        # Images that the training has learned from would make the classes look too compact.
        compactness = silhouette(features[~taught], labels[~taught])
        yield Map(
            row,
            trained_shots,
            tuple((round(float(x), DIGITS), round(float(y), DIGITS)) for x, y in positions),
            tuple(classes[label] for label in labels),
            tuple(taught.tolist()),
            round(compactness, DIGITS),
        )


def silhouette(rows: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """The mean over rows [N, F] of (b - a) / max(a, b), -1 to 1: higher for more compact classes.

    a is the mean distance to the other rows of the class, b that to the nearest other class. A row
    that is alone in its class counts as 0. Without two classes, or if all rows are alone, the
    result is 0.
    """
    from sklearn.metrics import silhouette_score

    if not 1 < len(set(labels.tolist())) < len(labels):
        return 0.0
    return float(silhouette_score(rows, labels))


def tsne(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
    """Positions [N, 2] at which neighbours among rows [N, F] are neighbours, the same each time.

    Raises:
        ManifestError: scikit-learn is not installed.
    """
    # A domain has two classes or more with two images or more of each, so this is 1 or more.
    most = (len(rows) - 1) / 3
    # The exact method, because sums of the approximation depend on the number of threads.
    maker = require_tsne()(
        perplexity=min(PERPLEXITY, most), init="pca", random_state=0, method="exact"
    )
    positions: npt.NDArray[np.floating[Any]] = maker.fit_transform(rows)
    return positions


def require_tsne() -> Any:
    """scikit-learn's class `TSNE`; raises `ManifestError` if scikit-learn is not installed."""
    # Imported late, because only embeddings need it.
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ManifestError(
            "environment",
            "needs the extra studies",
            "no scikit-learn",
            "pip install -e '.[studies]'",
        ) from None
    return TSNE
