"""A class with a meaning: its name is the label, and every text is about what it means."""

from pathlib import Path

import pytest
import torch

from dfkd.config.manifest import Manifest
from dfkd.distillation.embedding import encode_classes
from dfkd.distillation.labels import target_embeddings
from dfkd.distillation.text_only import classifier_name
from dfkd.errors import ManifestError
from dfkd.models.teacher import Teacher
from dfkd.operations.preflight import check_synthesis
from dfkd.prompts.maker import PromptMaker
from dfkd.prompts.styles import class_text_embeddings
from tests.helpers import small_manifest

PLAIN, MEANT = ["dog", "cat"], [{"name": "pet", "prompt": "dog"}, "cat"]


def read(folder: Path, classes: list[object], *overrides: str) -> Manifest:
    return small_manifest.read(
        folder,
        *overrides,
        classes=classes,
        prompts={
            "styles": ["red", "wood"],
            "contrastive": {"updates": 2, "batch_size": 4},
        },
        synthesis={"images_per_class": 2, "shard_size": 2},
    )


@pytest.mark.parametrize("method", ["vanilla", "mix", "random", "contrastive"])
def test_prompts_are_of_the_meaning_and_rows_of_the_name(
    method: str, tmp_path: Path, teacher: Teacher
) -> None:
    made = PromptMaker(read(tmp_path, [*MEANT], f"prompts.method={method}"), teacher).part(0)
    assert made["class"].to_pylist() == ["pet", "pet", "cat", "cat"]
    texts = made["text"].to_pylist()
    assert all("dog" in text and "pet" not in text for text in texts[:2])
    assert all("cat" in text for text in texts[2:])


@pytest.mark.parametrize("texts", ["template", "styles"])
def test_labels_are_distances_to_the_meaning(texts: str, tmp_path: Path, teacher: Teacher) -> None:
    setting = f"distillation.texts={texts}"
    meant, plain = read(tmp_path, [*MEANT], setting), read(tmp_path, [*PLAIN], setting)
    other = read(tmp_path, ["pet", "cat"], setting)
    expected = target_embeddings(plain, teacher)
    assert torch.equal(target_embeddings(meant, teacher), expected)
    assert not torch.allclose(target_embeddings(other, teacher), expected)
    assert torch.equal(encode_classes(meant, ("cat", "pet")), expected.flip(0))
    shown = class_text_embeddings(meant, teacher)
    assert torch.equal(shown, class_text_embeddings(plain, teacher))


def test_the_text_only_classifier_learns_the_meaning(tmp_path: Path) -> None:
    names = []
    for classes in (MEANT, PLAIN, ["pet", "cat"]):
        manifest = read(tmp_path, [*classes])
        names.append(classifier_name(manifest, manifest.teacher, 0))
    assert names[0] == names[1] != names[2]


def test_two_classes_that_mean_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"^classes: reads to the model exactly like 'cat'"):
        check_synthesis(read(tmp_path, ["cat", {"name": "pet", "prompt": "Cat"}]))
