"""Stages of `dfkd pretrain`: the split of drawings, teacher, its image tower, generator.

Each stage stores its result in the work folder and reuses it there, so the same command resumes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import yaml
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfkd.lab.miniature import clipart, drawings, evaluation_set, generator
from dfkd.lab.miniature import teacher as teacher_recipe
from dfkd.lab.miniature.captions import Captioner, caption_words, merges, write_merges
from dfkd.lab.miniature.drawings import Batches, Cache, DrawingRow, class_weights, plain
from dfkd.lab.miniature.generator import psnr
from dfkd.lab.miniature.icons import (
    EVALUATION,
    VALIDATION,
    Catalogue,
    common_nouns,
    object_nouns,
    package_folder,
)
from dfkd.lab.miniature.recipe import Recipe, folder_of, write_whole
from dfkd.lab.miniature.teacher import TowerTrainer
from dfkd.lab.miniature.training import log
from dfkd.utils.pixels import from_bytes

_CHUNK = 8000
"""Drawings that are compared at once."""
_MERGES = "bpe.txt.gz"
"""File of the teacher's merges."""
_NOUNS = 200
"""Number of classes with which the teacher is validated."""


@dataclass(frozen=True)
class DataSplit:
    """The drawings of a recipe, split into training, validation and evaluation."""

    catalogue: Catalogue
    training: Cache
    """Candidates for training and validation."""
    held_out: Cache
    """Candidates for the evaluation set."""
    keep: npt.NDArray[np.int64]
    """Indices of the rows of `training` that are trained on."""
    validation: list[DrawingRow]
    """Rows of `training` of the validation collections."""
    matches: dict[int, str]
    """Of rows of `training` that equal a held-out drawing, as of `find_matches`: neither trained on
    nor in validation."""
    evaluation: list[evaluation_set.EvaluationImage]
    """The bundled evaluation set."""
    left_out: int
    """Number of held-out drawings that are not shown because a training drawing is the same."""

    @property
    def rows(self) -> list[DrawingRow]:
        """The drawings that are trained on."""
        return [self.training.rows[i] for i in self.keep]

    def evaluation_pixels(self) -> Tensor:
        """The images of `evaluation`, float32 [N, 3, 64, 64] in [0, 1]."""
        pixels = np.stack([image.pixels for image in self.evaluation])
        return from_bytes(torch.from_numpy(pixels))

    def nouns(self) -> list[str]:
        """The classes with which the teacher is validated: the most frequent nouns of training."""
        return common_nouns(self.rows, _NOUNS)

    def validation_set(self, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The validation drawings of some classes: images float32 [N, 3, 64, 64], labels int64 [N].

        Args:
            classes: names; a label is an index of these.
        """
        selected = [row for row in self.validation if row.concept in classes]
        labels = torch.tensor([classes.index(row.concept) for row in selected])
        return plain(self.training, selected), labels


def split_drawings(recipe: Recipe) -> DataSplit:
    """Render all drawings, and split them so that no drawing is in two parts.

    A training drawing that equals a held-out one by path data or hash is not trained on. The hash
    misses symmetric drawings, so a held-out drawing whose pixels correlate with those of a training
    drawing is not shown.

    Raises:
        ManifestError: the icon package or the clip art is not where the recipe says.
    """
    data, work, processes = recipe.data, folder_of(recipe, "world"), recipe.threads
    catalogue = Catalogue(package_folder(data))
    prefixes = [c.prefix for c in catalogue.training()]

    # Icons, followed by clip art.
    log(f"icons of {len(prefixes)} collections to learn from, {len(EVALUATION)} held out")
    variants, most = data.variants_per_drawing, data.icons_per_collection
    icons = drawings.build(catalogue, prefixes, work / "training", variants, processes, most)
    shown = drawings.build(catalogue, EVALUATION, work / "held-out", variants, processes)
    # Titles of clip art are free text, in which the names of icons tell what is an object.
    nouns, official = object_nouns(icons.rows), evaluation_set.official_names()
    art, held_out_art = clipart.build(
        Path(data.clipart), nouns, official, work / "clipart", processes
    )
    training, held_out = drawings.joined(icons, art), drawings.joined(shown, held_out_art)

    # Training drawings that equal a held-out one, by path data or hash.
    record = work / "matches.json"
    if not record.exists():
        paths, bits = [], []
        for cache in (training, held_out):
            # Clip art has no key: no icon set copies its paths.
            keys = {
                (prefix, icon.name): drawings.path_key(icon.body, max(icon.box[2:]))
                for prefix in {row.collection for row in cache.rows} & set(catalogue.collections)
                for icon in catalogue.icons(prefix)
            }
            paths.append([keys.get((row.collection, row.name), "") for row in cache.rows])
            bits.append(drawings.hashes(drawings.grey(cache, row) for row in cache.rows))
        found = drawings.find_matches(paths[0], bits[0], paths[1], bits[1], data.max_hash_distance)
        write_whole(record, json.dumps(sorted(found.items())))
    matches: dict[int, str] = dict(json.loads(record.read_text("utf-8")))
    log(f"{len(training.rows)} drawings rendered, {len(matches)} are of held-out sets")
    trained_on = {*prefixes, clipart.TRAINING} - VALIDATION
    usable = [i for i in range(len(training.rows)) if i not in matches]
    keep = [i for i in usable if training.rows[i].collection in trained_on]
    validation = [training.rows[i] for i in usable if training.rows[i].collection in VALIDATION]

    # Held-out drawings of the evaluation classes that correlate with a training drawing.
    candidates = [row for rows in evaluation_set.by_class(held_out.rows).values() for row in rows]
    vectors = drawings.unit_vectors(drawings.grey(held_out, row) for row in candidates)
    # In chunks, because the correlations of all pairs would not fit into memory.
    highest = np.full(len(candidates), -1.0, np.float32)
    for start in range(0, len(keep), _CHUNK):
        rows = [training.rows[i] for i in keep[start : start + _CHUNK]]
        chunk = drawings.unit_vectors(drawings.grey(training, row) for row in rows)
        highest = np.maximum(highest, drawings.max_correlation(vectors, chunk))
    alike = zip(candidates, highest >= data.max_likeness, strict=True)
    left_out = frozenset(row for row, same in alike if same)
    evaluation = evaluation_set.select(held_out, left_out)
    return DataSplit(
        catalogue,
        training,
        held_out,
        np.asarray(keep),
        validation,
        matches,
        evaluation,
        len(left_out),
    )


def write_captioner(recipe: Recipe, split: DataSplit, output: Path) -> Captioner:
    """Write the teacher's configuration and merges; returns the captioner of `read_captioner`."""
    output.mkdir(parents=True, exist_ok=True)
    write_merges(output / _MERGES, merges(caption_words(split.rows, recipe.teacher.word_count)))
    captioner = read_captioner(recipe, split, output)
    config = teacher_recipe.config(recipe.teacher, captioner.tokenizer.vocab_size, _MERGES)
    write_whole(output / "teacher.json", json.dumps(config, indent=2) + "\n")
    return captioner


def read_captioner(recipe: Recipe, split: DataSplit, folder: Path) -> Captioner:
    """The captioner with the tokenizer of the merges in a folder."""
    length = recipe.teacher.context_length
    tokenizer = SimpleTokenizer(str(folder / _MERGES), context_length=length)
    return Captioner(tokenizer, caption_words(split.rows, recipe.teacher.word_count))


def train_teacher(recipe: Recipe, split: DataSplit, captioner: Captioner) -> Path:
    """Train both towers; returns the folder of the weights and of `scores.json`.

    It is a folder of the work, because the second training of the image tower follows.
    """
    folder = folder_of(recipe, "teacher")
    if not (folder / "scores.json").exists():
        batches = Batches(split.training, split.keep, recipe.teacher.batch_size, recipe.seed)
        trainer = teacher_recipe.TeacherTrainer(
            recipe.teacher, batches, captioner, folder, recipe.seed
        )
        _train_validated(trainer, split, folder)
        write_whole(folder / "scores.json", json.dumps(trainer.scores(), indent=2) + "\n")
    return folder


def train_tower(
    recipe: Recipe, split: DataSplit, captioner: Captioner, first: Path, output: Path
) -> TowerTrainer:
    """Train the image tower again; returns the trainer. The teacher is exported to `output`.

    Args:
        first: the folder of `train_teacher`.
    """
    classes = evaluation_set.by_class(split.rows).values()
    # Another seed than the first training's, so that it does not repeat its batches.
    batches = Batches(
        split.training,
        split.keep,
        recipe.teacher.batch_size,
        recipe.seed + 3,
        usual=lambda rows: class_weights(rows, classes, recipe.tower.class_share),
    )
    trainer = TowerTrainer(
        recipe.tower,
        recipe.teacher,
        load_file(first / "teacher.safetensors"),
        batches,
        captioner,
        folder_of(recipe, "tower"),
        recipe.seed,
    )
    _train_validated(trainer, split, output)
    return trainer


def _train_validated(
    trainer: teacher_recipe.TeacherTrainer, split: DataSplit, output: Path
) -> None:
    """Run a training of the teacher. Each checkpoint's average is exported to `output`."""
    nouns = split.nouns()
    images, labels = split.validation_set(nouns)

    def validate() -> float:
        tokenizer = trainer.captioner.tokenizer
        correct = teacher_recipe.zero_shot(trainer.average, tokenizer, images, labels, nouns)
        accuracy = float(correct.float().mean())
        log(f"{trainer.name} step {trainer.step} validation: {accuracy:.4f} of {len(nouns)} nouns")
        export(trainer.average.state_dict(), output / "teacher.safetensors")
        return accuracy

    trainer.run(lambda: trainer.note(validate()))
    # A run that resumes after its last step has exported nothing yet.
    validate()


def train_generator(
    recipe: Recipe, split: DataSplit, teacher: nn.Module, output: Path
) -> generator.GeneratorTrainer:
    """Train the VQGAN; returns the trainer. Each checkpoint is exported in the official layout.

    Args:
        teacher: the exported teacher of the first training, for the perceptual loss.
    """
    config = generator.config(recipe.generator)
    write_whole(output / "generator.yaml", yaml.safe_dump(config, sort_keys=False))
    # At most 256 validation drawings. The evaluation set is reserved for the final scores.
    images = plain(split.training, split.validation[:: 1 + len(split.validation) // 256])
    # Another seed than the teacher's, so that the two do not see the same batches.
    batches = Batches(split.training, split.keep, recipe.generator.batch_size, recipe.seed + 1)
    trainer = generator.GeneratorTrainer(
        recipe.generator, batches, teacher, folder_of(recipe, "generator"), recipe.seed
    )

    def validate() -> None:
        quality = psnr(reconstruct(trainer.network, images), images)
        log(f"generator step {trainer.step} validation icons: {quality:.2f} dB")
        export(trainer.network.official(), output / "generator.safetensors")

    trainer.run(validate)
    validate()
    return trainer


@torch.no_grad()
def reconstruct(network: generator.Autoencoder, images: Tensor) -> Tensor:
    """Images [N, 3, 64, 64] in [0, 1] after encoding, quantising and decoding, in chunks."""
    return torch.cat([network.reconstruct(part) for part in images.split(64)])


def export(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors; floats become float16, which halves the bundle."""
    halves = {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }
    save_file({key: value.contiguous() for key, value in halves.items()}, path)
    # safetensors creates files that only their owner may read.
    path.chmod(0o644)
