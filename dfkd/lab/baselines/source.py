"""The image sources: the conventional methods, which make a whole part together, and latents with
L_bn beside the distance to the prompt (the row "+ L_bn" of Table 5).
"""

import pkgutil
from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from dfkd.config.hashing import derive_seed
from dfkd.config.plan import image_count, part_count, parts, root_seed
from dfkd.dataset.shards import get_shard, read_shard
from dfkd.lab.baselines.batch_norm import Taps, batch_norm_loss, batch_norm_taps
from dfkd.lab.baselines.inverter import Classifier, Inverter, PartRequest, RunContext
from dfkd.lab.baselines.settings import BatchNorm, Inversion
from dfkd.prompts.conditions import StoredPrompt
from dfkd.prompts.styles import class_text_embeddings
from dfkd.storage import layout
from dfkd.storage.checkpoints import Checkpoints
from dfkd.synthesis.image_source import ImageSource, SourceContext, Synthesised
from dfkd.synthesis.latents import LatentSource
from dfkd.utils.images import decode_image


class InversionSource(ImageSource):
    """Makes parts by a conventional method.

    The parts of DFAD, CMI and PRE-DFKD are a chain: each continues from the networks that the part
    before it has left. So one worker makes them in order, and keeps the state after each part in
    storage. A state holds tensors only (safetensors), with their sha256, which a reader checks.
    """

    whole_part = True

    def __init__(self, context: SourceContext, settings: Inversion) -> None:
        self.manifest, self.version = context.manifest, context.version
        self.device = context.teacher.device
        self.batch_key = f"synthesis.{self.manifest.method}.batch_size"
        self.states = Checkpoints(self.version.storage.child(layout.STATES))
        """State `n` is what part `n` starts from."""
        seed = derive_seed("inversion", *root_seed(self.manifest))
        size, images = self.manifest.synthesis.image_size, image_count(self.manifest)
        run = RunContext(seed, images, size, self.earlier)
        classifier = Classifier(
            context.teacher, class_text_embeddings(self.manifest, context.teacher)
        )
        self.chained = settings.scope == "run"
        self.inverter: Inverter = pkgutil.resolve_name(settings.inverter)(classifier, run, settings)

    def make(self, prompts: Sequence[StoredPrompt], seeds: Sequence[int]) -> Synthesised:
        """See `ImageSource.make`."""
        labels = torch.tensor([prompt.class_index for prompt in prompts], device=self.device)
        size = self.manifest.synthesis.shard_size
        part = prompts[0].index // size
        # Only the last part is smaller, so all earlier ones have this many images.
        before = part * size * len(self.manifest.classes)
        return self.inverter.make(PartRequest(labels, seeds, part, before))

    def begin(self, part: int) -> int:
        """See `ImageSource.begin`: the newest state, from which the method continues.

        A part whose shards are all there is made again if its state is missing. That happens when a
        regeneration carries the part over, or when a worker was killed before it wrote the state.
        """
        if not self.chained:
            return part
        # `part` may have been finished since it was asked for, by an attempt that has failed later
        # or by another driver. The state comes first: a part's receipts are written before it.
        newest, done = self.states.newest(), self.version.done()
        unfinished = (
            number
            for number, tasks in enumerate(parts(self.manifest))
            if not all(task.id in done for task in tasks)
        )
        if newest > next(unfinished, newest):
            # A receipt was deleted after its part had finished. Old states are not kept, so the
            # chain starts again from its first part.
            self.states.clear()
            newest = 0
        if newest:
            self.inverter.restore(self.states.read(newest))
        return newest

    def finish(self, part: int) -> None:
        """See `ImageSource.finish`: keep the state, from which the next part starts."""
        # After the receipts: a worker that dies in between makes the part once more.
        if self.chained and part + 1 < part_count(self.manifest):
            self.states.write(part + 1, self.inverter.state())

    def earlier(self, part: int) -> Tensor:
        """The stored images of a finished part, uint8 [N, H, W, 3], ordered by class and index.

        Raises:
            CorruptionError: a shard does not match its receipt, or an image cannot be decoded.
        """
        (tasks,) = islice(parts(self.manifest), part, part + 1)
        receipts = [self.version.receipt(task) for task in tasks]
        home, size = self.version.home, self.manifest.synthesis.image_size
        images = [
            sample.decoded(lambda image: decode_image(image, size))
            for receipt in receipts
            for sample in read_shard(get_shard(home, receipt), receipt)
        ]
        return torch.from_numpy(np.stack(images))


class BatchNormLatents(LatentSource):
    """Adds L_bn of the batch to the loss of each image, so that its relative weight does not depend
    on the batch size. If the loss of one image is no number, its whole batch
    has diverged.
    """

    taps: Taps

    def __init__(self, context: SourceContext, settings: BatchNorm) -> None:
        super().__init__(context)
        self.weight = settings.weight

    def make(self, prompts: Sequence[StoredPrompt], seeds: Sequence[int]) -> Synthesised:
        """See `ImageSource.make`; `ManifestError` if the teacher has no batch norm."""
        with batch_norm_taps(self.teacher, "L_bn") as self.taps:
            return super().make(prompts, seeds)

    def losses(self, distances: Tensor) -> Tensor:
        """See `LatentSource.losses`."""
        # Added to every image, so the sum over the batch keeps the ratio of the two terms.
        return distances + self.weight * batch_norm_loss(self.taps.values)
