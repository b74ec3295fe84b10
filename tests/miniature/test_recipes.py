"""Captions, sampling, augmentation and the two training loops, on a handful of icons."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from dfkd.miniature import augmentation, captions, generator, rendering
from dfkd.miniature import teacher as teacher_recipe
from dfkd.miniature.recipe import GeneratorRecipe, TeacherRecipe
from dfkd.miniature.rendering import Cache, IconRow

WORDS = ["a", "an", "the", "in", "style", "of", "dog", "alarm", "clock", "solar", "red", "*"]


def row(name: str, collection: str = "some", colour: bool = False, slot: int = 0) -> IconRow:
    return IconRow(collection, name, tuple(name.split()), ("bold",), ("Animals",), (), colour, slot)


@pytest.fixture(scope="module")
def cache() -> Cache:
    rng = np.random.default_rng(0)
    mono = (rng.random((6, 64, 64)) > 0.5).astype(np.uint8) * 255
    colour = rng.integers(0, 256, (2, 64, 64, 4), dtype=np.uint8)
    names = ["dog", "cat", "clock", "house", "alarm clock", "tree"]
    rows = [row(name, slot=i) for i, name in enumerate(names)]
    return Cache([*rows, *(row("dog", colour=True, slot=i) for i in range(2))], mono, colour)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SimpleTokenizer:
    path = tmp_path_factory.mktemp("merges") / "bpe.txt.gz"
    teacher_recipe.write_merges(path, teacher_recipe.merges(WORDS))
    return SimpleTokenizer(str(path), context_length=24)


def test_reduced_merges_spell_their_words_as_clip_does(tokenizer: SimpleTokenizer) -> None:
    full = SimpleTokenizer()
    for word in WORDS:
        assert tokenizer.bpe(word) == full.bpe(word)
        assert tokenizer.decode(tokenizer.encode(word)).strip() == word
    assert tokenizer.vocab_size < 700
    assert tokenizer.decode(tokenizer.encode("zeppelin")).strip() == "zeppelin"


def test_captions_are_reproducible_and_fit(tokenizer: SimpleTokenizer) -> None:
    maker = captions.Captioner(
        tokenizer.encode, tokenizer.sot_token_id, tokenizer.eot_token_id, WORDS, {"some": "Some"}
    )
    look = captions.Look(("red",))
    made = [
        [maker.caption(row("alarm clock"), look, np.random.default_rng(seed)) for seed in range(50)]
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert len({" ".join(caption.words) for caption in made[0]}) > 10
    assert any(captions.PSEUDO_WORD in caption.words for caption in made[0])
    ids = maker.tokens([caption.words for caption in made[0]], 12)
    assert ids.shape[1] <= 12
    assert (ids.max(1) == tokenizer.eot_token_id).all()


def test_easy_captions_are_the_plain_name() -> None:
    maker = captions.Captioner(lambda text: [1], 0, 2, WORDS, {"some": "Some"})
    rng = np.random.default_rng(0)
    assert maker.caption(row("dog"), captions.Look(()), rng, 0.0) == (
        captions.Caption("dog", ["a", "dog"])
    )


def test_captions_tell_only_what_is_true() -> None:
    maker = captions.Captioner(lambda text: [1], 0, 2, ["noise"], {"some": "Some set"})
    one, look = row("dog"), captions.Look(("red", "pixel art"))
    truths = maker.truths(one, look)
    assert set(truths) == {"red", "pixel art", "bold", "Some set", "monochrome"}
    rng = np.random.default_rng(0)
    made = [maker.caption(one, look, rng, telling=True) for _ in range(200)]
    assert all(set(caption.told) <= set(truths) for caption in made)
    telling = [caption for caption in made if caption.told]
    assert 100 < len(telling) < 150  # 61 of 100 forms
    for caption in telling:
        if "pixel art" in caption.told:
            assert "pixel" in caption.words


def test_mates_share_a_name(cache: Cache) -> None:
    rows, *_ = rendering.Batches(cache, np.arange(8), 8, 0).draw(3, mates=True)
    names = [one.name for one in rows]
    assert len(rows) == 8
    assert len(set(names)) <= 4
    assert all(names.count(name) >= 2 for name in names)


def test_things_that_sets_share_are_seen_more_than_interface_parts() -> None:
    rows = [
        *(row("dog", f"set {i}") for i in range(5)),
        row("arrow left"),
        row("odd compound name"),
    ]
    shares = rendering.weights(rows)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] > shares[5]
    assert shares[0] > shares[6]
    assert rendering.easy_weights(rows)[5:].sum() == 0


def test_batches_depend_on_seed_and_step_only(cache: Cache) -> None:
    keep = np.arange(len(cache.rows))
    first = rendering.Batches(cache, keep, 16, 3).draw(5)
    second = rendering.Batches(cache, keep, 16, 3).draw(5)
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert len(first[1]) + len(first[2]) == 16
    assert [r.colour for r in first[0]] == sorted(r.colour for r in first[0])
    assert rendering.Batches(cache, keep, 16, 3).draw(6)[0] != first[0]


def test_augmentation_is_reproducible_and_in_range(cache: Cache) -> None:
    rows, alpha, coloured, _ = rendering.Batches(cache, np.arange(8), 64, 0).draw(0)
    made = []
    for _ in range(2):
        gen = torch.Generator().manual_seed(1)
        plan = augmentation.plan(len(rows), gen)
        made.append(augmentation.paint(alpha, coloured, plan, gen))
    assert torch.equal(made[0], made[1])
    assert made[0].shape == (64, 3, 64, 64)
    assert made[0].min() >= 0
    assert made[0].max() <= 1


def test_without_strength_icons_stay_black_on_white(cache: Cache) -> None:
    gen = torch.Generator().manual_seed(0)
    plan = augmentation.plan(64, gen, 0.0)
    assert set(plan.ink.tolist()) == {augmentation.BLACK}
    assert set(plan.ground.tolist()) == {augmentation.WHITE}
    assert not plan.noise.any()


def test_enclosed_places_are_filled() -> None:
    ring = torch.zeros(1, 1, 16, 16)
    ring[..., 4:12, 4:12] = 1
    ring[..., 6:10, 6:10] = 0
    ring[..., 0, 3:5] = 1
    filled = augmentation.fill_holes(ring)
    assert filled[0, 0, 4:12, 4:12].min() == 1
    assert filled.sum() == 64 + 2


def test_a_caption_is_a_positive_of_every_image_that_it_is_true_of() -> None:
    told = [
        captions.Caption("dog", ["a", "dog"]),
        captions.Caption("dog", ["a", "red", "dog"], ("red",)),
        captions.Caption("cat", ["a", "red", "cat"], ("red",)),
    ]
    by_name = teacher_recipe.positives(told, None)
    assert by_name.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    truths = [["blue"], ["red", "bold"], ["red"]]
    assert teacher_recipe.positives(told, truths).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_loss_rewards_positives() -> None:
    same = torch.eye(4)[[0, 0, 1]]
    scale = torch.tensor(20.0)
    names = [["dog", "dog", "cat"], ["dog", "owl", "owl"]]
    right, wrong = (
        teacher_recipe.contrastive_loss(
            same,
            same,
            scale,
            teacher_recipe.positives([captions.Caption(n, [n]) for n in ns], None),
        )
        for ns in names
    )
    assert right < wrong


def small_teacher() -> TeacherRecipe:
    return TeacherRecipe(
        embed_dim=16, image_width=8, text_width=16, text_heads=2, text_layers=1, steps=1,
        style_steps=1, batch_size=8, warmup_steps=1, easy_steps=1, checkpoint_every=1,
        compile=False,
    )  # fmt: skip


def test_training_text_path_equals_open_clip(tokenizer: SimpleTokenizer) -> None:
    torch.manual_seed(0)
    model = teacher_recipe.build(small_teacher(), tokenizer.vocab_size).eval()
    ids = tokenizer(["a dog", "a clock in the style of red"])
    gen = torch.Generator().manual_seed(0)
    ours = teacher_recipe.encode_tokens(model, ids[:, :10], -1, (1.0, 1.0), gen)
    theirs = model.encode_text(ids)  # type: ignore[operator]
    torch.testing.assert_close(ours, theirs)


def test_interrupted_teacher_resumes(
    cache: Cache, tokenizer: SimpleTokenizer, tmp_path: Path
) -> None:
    keep: npt.NDArray[np.int64] = np.arange(8)

    def trainer() -> teacher_recipe.TeacherTrainer:
        return teacher_recipe.TeacherTrainer(
            small_teacher(), cache, keep, tokenizer, WORDS, {"some": "Some"}, tmp_path, 0, print
        )

    steps: list[int] = []

    def stop(model: nn.Module, step: int) -> None:
        steps.append(step)
        if len(steps) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer().run(stop)
    model = trainer().run(stop)
    assert steps == [1, 2]
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_generator_trains_with_codes_and_exports_official_names(
    cache: Cache, tokenizer: SimpleTokenizer, tmp_path: Path
) -> None:
    recipe = GeneratorRecipe(
        channel_multipliers=(1, 1), latent_channels=32, codes=16, steps=3, free_steps=1,
        batch_size=4, checkpoint_every=3, compile=False,
    )  # fmt: skip
    teacher = teacher_recipe.build(small_teacher(), tokenizer.vocab_size).eval()
    trainer = generator.GeneratorTrainer(
        recipe, cache, np.arange(8), teacher, tmp_path, 0, lambda text: None
    )
    network = trainer.run(lambda made, step: None)
    assert network.quantize.started
    state = network.official()
    assert {key.split(".")[0] for key in state} == {
        "encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"
    }  # fmt: skip
    assert state["quantize.embedding.weight"].shape == (16, 32)
    made = network.reconstruct(torch.rand(2, 3, 64, 64))
    assert made.shape == (2, 3, 64, 64)


def test_perceptual_gradients_stay_finite_on_empty_images(tokenizer: SimpleTokenizer) -> None:
    teacher = teacher_recipe.build(small_teacher(), tokenizer.vocab_size).eval()
    blank = torch.ones(2, 3, 64, 64, requires_grad=True)
    generator.Perception(teacher)(blank, torch.rand(2, 3, 64, 64)).backward()
    assert blank.grad is not None
    assert blank.grad.abs().max() < 10


def test_psnr_of_known_errors() -> None:
    assert generator.psnr(torch.full((1, 3, 2, 2), 0.1), torch.zeros(1, 3, 2, 2)) == (
        pytest.approx(20.0, abs=1e-4)
    )
