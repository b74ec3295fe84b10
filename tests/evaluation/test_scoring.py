import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dfkd.config.distillation import Evaluation
from dfkd.errors import DfkdError, ManifestError
from dfkd.evaluation import scoring
from dfkd.evaluation.data import Domains, open_data
from dfkd.evaluation.scoring import Classifier, evaluate, score
from dfkd.lab.few_shot.run import read_domain
from dfkd.utils.images import Resizing, decode_image
from tests.helpers import small_manifest
from tests.helpers.tiny_models import VIT, model_config, write_teacher

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
CLASSES = tuple(COLOURS)


def paint(root: Path, domain: str, name: str, colour: str, count: int, start: int = 0) -> None:
    folder = root / domain / name
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        Image.new("RGB", (20, 30), COLOURS[colour]).save(folder / f"{index}.png")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH", 4)


@pytest.fixture
def data(tmp_path: Path) -> Domains:
    """Flat: all as labelled. Odd: of 4 red images one is blue, the only green one is red."""
    for name in CLASSES:
        paint(tmp_path, "flat", name, name, 3)
    paint(tmp_path, "odd", "red", "red", 3)
    paint(tmp_path, "odd", "red", "blue", 1, start=3)
    paint(tmp_path, "odd", "green", "red", 1)
    return open_data(Evaluation(data=str(tmp_path)), CLASSES)


def nearest_colour(pixels: Tensor) -> Tensor:
    """Distances to the class's colour, so that argmin is right and argmax wrong."""
    return torch.stack([1 - pixels[:, channel].mean(dim=(1, 2)) for channel in range(3)], dim=1)


def classifier(distances: Callable[[Tensor], Tensor] = nearest_colour) -> Classifier:
    return Classifier("student", "mix", 7, 16, distances, torch.device("cpu"), 10)


def test_the_class_with_the_smallest_distance_is_counted(data: Domains) -> None:
    flat, odd = score([classifier()], data, threads=2).rows
    assert (flat["model"], flat["method"], flat["seed"]) == ("student", "mix", 7)
    assert (flat["domain"], flat["images"], flat["accuracy"]) == ("flat", 9, 1.0)
    assert flat["confusion"] == [[3, 0, 0], [0, 3, 0], [0, 0, 3]]
    assert (odd["domain"], odd["images"], odd["accuracy"]) == ("odd", 5, 3 / 5)
    assert odd["confusion"] == [[3, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert odd["per_class"] == {"red": 0.75, "green": 0.0}
    assert odd["class_mean"] == 0.375


@pytest.mark.parametrize(("batch_size", "threads"), [(1, 1), (3, 4), (64, 2)])
def test_scores_do_not_depend_on_batches_or_threads(
    data: Domains, monkeypatch: pytest.MonkeyPatch, batch_size: int, threads: int
) -> None:
    expected = score([classifier()], data, 1)
    assert expected.parameters == {"student": 10}
    monkeypatch.setattr(scoring, "BATCH", batch_size)
    assert score([classifier()], data, threads) == expected


def test_models_get_their_own_size_in_the_unit_range_and_batches(data: Domains) -> None:
    model = Mock(wraps=nearest_colour)
    score([classifier(model)], data)
    seen = [pixels for (pixels,), _ in model.call_args_list]
    assert [tuple(batch.shape) for batch in seen] == [(4, 3, 16, 16)] * 3 + [(2, 3, 16, 16)]
    assert {batch.dtype for batch in seen} == {torch.float32}
    assert torch.cat(seen).min() == 0
    assert torch.cat(seen).max() == 1


def test_few_models_are_held_at_a_time(data: Domains, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "GROUP", 2)
    monkeypatch.setattr(scoring, "BATCH", 64)
    events: list[str] = []

    def models() -> Iterator[Classifier]:
        for name in ("a", "b", "c"):
            events.append(f"load {name}")
            yield classifier(
                lambda pixels, name=name: events.append(name) or nearest_colour(pixels)
            )

    score(models(), data)
    assert events == ["load a", "load b", "a", "b", "load c", "c"]


def test_models_scored_together_decode_each_image_once(
    data: Domains, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Mock(wraps=decode_image)
    monkeypatch.setattr(scoring, "decode_image", decode)
    one, other = classifier(), classifier(lambda seen: 1 - nearest_colour(seen))
    together = score([one, other], data)
    assert decode.call_count == len(data.items)
    assert together.rows == score([one], data).rows + score([other], data).rows
    assert together.rows[0] != together.rows[len(together.rows) // 2]
    decode.reset_mock()
    score([dataclasses.replace(one, image_size=size) for size in (16, 16, 9)], data)
    sizes = [size for (_, size, _), _ in decode.call_args_list]
    assert sizes == [16] * len(data.items) + [9] * len(data.items)


def test_a_picture_is_squashed_or_cropped_as_each_model_wants_it(tmp_path: Path) -> None:
    """Wide pictures: green in the centre, and more red than green in all."""
    for name in CLASSES:
        folder = tmp_path / "data" / "flat" / name
        folder.mkdir(parents=True)
        picture = Image.new("RGB", (96, 32), COLOURS["red"])
        picture.paste(COLOURS["green"], (32, 0, 64, 32))
        picture.save(folder / "0.png")
    data = open_data(Evaluation(data=str(tmp_path / "data")), CLASSES)
    squashed = dataclasses.replace(classifier(), resizing=Resizing("squash"))
    rows = score([classifier(), squashed, classifier()], data).rows
    answers = [np.sum(row["confusion"], axis=0).tolist() for row in rows]
    assert answers == [[0, 3, 0], [3, 0, 0], [0, 3, 0]]


def test_a_teacher_s_pictures_become_squares_as_its_configuration_says(
    data: Domains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Mock(wraps=decode_image)
    monkeypatch.setattr(scoring, "decode_image", decode)
    files = write_teacher(tmp_path / "teacher", model_config(VIT))
    published = {"interpolation": "bilinear", "resize_mode": "squash"}
    tree = {"model_cfg": model_config(VIT), "preprocess_cfg": published}
    (tmp_path / "teacher" / "open_clip_config.json").write_text(json.dumps(tree))
    manifest = small_manifest.read(
        tmp_path,
        classes=list(CLASSES),
        teacher={"model": files.model, "weights": str(tmp_path / "teacher")},
        evaluation={"data": data.source, "models": "teacher"},
        storage={"root": str(tmp_path / "run")},
    )
    evaluate(manifest, threads=1)
    resizings = [resizing for (_, _, resizing), _ in decode.call_args_list]
    assert resizings == [Resizing("squash", "bilinear")] * len(data.items)


def test_an_unreadable_image_is_named_and_left_out_of_every_count(
    data: Domains, tmp_path: Path
) -> None:
    broken = tmp_path / "flat" / "red" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    gone = tmp_path / "flat" / "green" / "2.png"
    gone.unlink()
    scores = score([classifier(), classifier()], data)
    assert [row["images"] for row in scores.rows] == [7, 5, 7, 5]
    assert scores.rows[0]["confusion"] == [[2, 0, 0], [0, 2, 0], [0, 0, 3]]
    assert [name.split(": ")[0] for name in scores.unreadable] == [str(gone), str(broken)]


def test_an_unreadable_image_is_named_even_if_its_name_is_not_utf8(tmp_path: Path) -> None:
    for name in CLASSES:
        paint(tmp_path, "flat", name, name, 2)
    (tmp_path / "flat" / "red" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    data = open_data(Evaluation(data=str(tmp_path)), CLASSES)
    manifest = small_manifest.read(tmp_path, classes=list(CLASSES))
    scored = score([classifier()], data).unreadable
    few_shot = read_domain(manifest, data, "flat", threads=1).unreadable
    name = str(tmp_path / "flat" / "red" / r"caf\udce9.png")
    assert [line.split(": ")[0] for line in (*scored, *few_shot)] == [name, name]


def test_data_without_a_readable_image_is_refused(data: Domains, tmp_path: Path) -> None:
    for item in data.items:
        Path(item.name).write_bytes(b"no image")
    with pytest.raises(DfkdError, match=r"evaluation\.data: none of 14 images"):
        score([classifier()], data)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda pixels: nearest_colour(pixels) * float("nan"),
        lambda pixels: nearest_colour(pixels) + float("inf"),
        lambda pixels: nearest_colour(pixels)[:, :2],
        lambda pixels: nearest_colour(pixels)[:1],
    ],
    ids=["nan", "infinite", "classes", "batch"],
)
def test_a_model_with_impossible_output_is_refused(
    data: Domains, wrong: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(DfkdError, match=r"student mix seed 7: must give finite distances \(4, 3\)"):
        score([classifier(wrong)], data)


def test_classes_that_the_teacher_would_cut_are_refused(tmp_path: Path) -> None:
    long = "dog " * 40 + "house"
    paint(tmp_path / "data", "flat", "cat", "red", 1)
    paint(tmp_path / "data", "flat", long, "blue", 1)
    manifest = small_manifest.read(
        tmp_path,
        classes=["cat", long],
        evaluation={"data": str(tmp_path / "data"), "models": "teacher"},
        storage={"root": str(tmp_path / "run")},
    )
    with pytest.raises(ManifestError, match=r"^classes: a class prompt has at most"):
        evaluate(manifest, threads=1)
