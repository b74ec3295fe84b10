"""An evaluation set as a student sees it: what its backbone gives, and a map of that."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from dfkd.domains import Domains, Item
from dfkd.pictures import batch, pixels
from dfkd.student import Student
from dfkd.tsne import tsne

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


def features(student: Student, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    """What the backbone gives for images [S, S, 3]: float32 [N, E], before the head."""
    with torch.inference_mode():
        given = torch.from_numpy(batch(images)).to(student.mean.device)
        found = student.backbone((given - student.mean) / student.std)
    array: npt.NDArray[np.float32] = found.float().cpu().numpy()
    return array
