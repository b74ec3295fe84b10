"""The second training of the teacher's image tower."""

from pathlib import Path

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer

from dfkd.lab.miniature import drawings
from dfkd.lab.miniature import teacher as teacher_recipe
from dfkd.lab.miniature.captions import Captioner
from dfkd.lab.miniature.drawings import Cache
from dfkd.lab.miniature.recipe import TowerRecipe
from dfkd.lab.miniature.teacher import NamedBatch, TowerTrainer
from tests.helpers.drawings import WORDS, row, small_teacher
from tests.helpers.training import interrupt_after_saving, same_weights


def trainer(
    cache: Cache, tokenizer: SimpleTokenizer, folder: Path, names_weight: float = 2.0
) -> TowerTrainer:
    torch.manual_seed(5)
    state = teacher_recipe.build(small_teacher(), tokenizer.vocab_size).state_dict()
    recipe = TowerRecipe(steps=3, names_weight=names_weight)
    batches = drawings.Batches(cache, np.arange(8), small_teacher().batch_size, 3)
    captioner = Captioner(tokenizer, WORDS)
    return TowerTrainer(recipe, small_teacher(), state, batches, captioner, folder, 0)


def test_classes_share_the_share_that_they_are_given_equally() -> None:
    rows = [row("dog", "a"), row("dog", "b"), row("cat", "a"), row("odd name", "a")]
    shares = drawings.class_weights(rows, [rows[:2], rows[2:3]], 0.8)
    usual = drawings.weights(rows)
    np.testing.assert_allclose(shares, 0.2 * usual + [0.2, 0.2, 0.4, 0])
    # Equal rows of a cache that was read again are the same drawings.
    again = [row("dog", "a"), row("dog", "b")]
    np.testing.assert_allclose(drawings.class_weights(rows, [again, rows[2:3]], 0.8), shares)
    # Drawings of none of the classes leave the usual shares.
    np.testing.assert_allclose(drawings.class_weights(rows, [], 0.8), usual)


def test_only_the_image_tower_learns_and_it_resumes_to_the_same_weights(
    cache: Cache, tokenizer: SimpleTokenizer, tmp_path: Path
) -> None:
    begun = trainer(cache, tokenizer, tmp_path / "parts")
    before = {name: weight.clone() for name, weight in begun.model.state_dict().items()}

    interrupt_after_saving(begun)
    resumed, whole = (trainer(cache, tokenizer, tmp_path / name) for name in ("parts", "whole"))
    resumed.run()
    whole.run()
    assert same_weights(resumed.average, whole.average)
    after = resumed.average.state_dict()
    for name, weight in after.items():
        if not name.startswith("visual."):
            assert torch.equal(weight, before[name])
    assert not torch.equal(after["visual.conv1.weight"], before["visual.conv1.weight"])
    assert resumed.scores()["steps"] == 3


def test_an_image_has_all_names_of_its_object_that_the_batch_has(
    cache: Cache, tokenizer: SimpleTokenizer, tmp_path: Path
) -> None:
    made = trainer(cache, tokenizer, tmp_path)
    batches = [made.batch(step) for step in range(20)]
    seen = 0
    for step, batch in enumerate(batches):
        rows, _ = made.batches.draw(step, groups=batch.groups)
        found = sorted({one.concept for one in rows})
        assert batch.named.shape == (len(rows), len(found))
        texts = [tokenizer.decode(ids.tolist()) for ids in batch.name_ids]
        assert all(f"a {name} <end" in text for name, text in zip(found, texts, strict=True))
        for one, named in zip(rows, batch.named, strict=True):
            names = {name for name, has in zip(found, named, strict=True) if has}
            expected = {one.concept} | ({"clock"} if one.concept == "alarm clock" else set())
            assert names == expected & set(found)
            seen += one.concept == "alarm clock" and len(names) == 2
    assert seen


def test_the_loss_adds_a_cross_entropy_over_names(
    cache: Cache, tokenizer: SimpleTokenizer, tmp_path: Path
) -> None:
    weighted, plain = (trainer(cache, tokenizer, tmp_path, weight) for weight in (3.0, 0.0))
    batch = weighted.batch(0)
    batch = NamedBatch(**vars(batch) | {"named": torch.eye(len(batch.named))[:, :2]})
    batch.named[2:, 0] = 1
    ids = batch.name_ids[:2]
    batch = NamedBatch(**vars(batch) | {"name_ids": ids})
    image = torch.nn.functional.normalize(torch.randn(len(batch.images), 16), dim=1)
    cosines = image @ weighted.texts(ids).T
    scale = float(weighted.model.logit_scale.detach().exp().clamp(max=30))
    own = cosines.gather(1, batch.named.argmax(1, keepdim=True))
    expected = ((scale * cosines).exp().sum(1).log() - scale * own[:, 0]).mean()
    difference = weighted.loss(image, batch) - plain.loss(image, batch)
    torch.testing.assert_close(difference, 3 * expected, rtol=1e-3, atol=1e-3)
