"""Captions, sampling, augmentation and the three training loops, on a handful of icons."""

from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from dfkd.lab.miniature import captions, diffusion, drawings, generator
from dfkd.lab.miniature import teacher as teacher_recipe
from dfkd.lab.miniature.diffusion import LatentSpace
from dfkd.lab.miniature.drawings import Cache
from dfkd.lab.miniature.generator import colours_kept, psnr
from dfkd.lab.miniature.looks import Look
from dfkd.lab.miniature.painting import NAMES
from dfkd.lab.miniature.recipe import DiffusionRecipe, GeneratorRecipe
from dfkd.lab.miniature.teacher import CaptionedBatch, PaintedDrawing, positives
from dfkd.models.teacher import Teacher
from tests.helpers.drawings import WORDS, row, small_teacher
from tests.helpers.training import interrupt_after_saving, same_weights

RED = NAMES.index("red")


def test_reduced_merges_spell_their_words_as_clip_does(tokenizer: SimpleTokenizer) -> None:
    full = SimpleTokenizer()
    for word in WORDS:
        assert tokenizer.bpe(word) == full.bpe(word)
        assert tokenizer.decode(tokenizer.encode(word)).strip() == word
    assert tokenizer.vocab_size < 700
    assert tokenizer.decode(tokenizer.encode("zeppelin")).strip() == "zeppelin"


def test_captions_are_reproducible_and_fit(tokenizer: SimpleTokenizer) -> None:
    maker = captions.Captioner(tokenizer, WORDS)
    look = Look(ink=RED, ground="wood")
    made = [
        [maker.caption(row("alarm clock"), look, np.random.default_rng(seed)) for seed in range(50)]
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert len({" ".join(caption.words) for caption in made[0]}) > 10
    ids = maker.tokens([caption.words for caption in made[0]], 12)
    assert ids.shape[1] <= 12
    assert (ids.amax(1) == tokenizer.eot_token_id).all()


def test_captions_of_the_default_look_are_silent_about_it(tokenizer: SimpleTokenizer) -> None:
    maker, rng = captions.Captioner(tokenizer, WORDS), np.random.default_rng(0)
    made = [maker.caption(row("dog"), Look(), rng) for _ in range(300)]
    silent = [caption for caption in made if caption.implies_default]
    assert 0.8 < len(silent) / len(made) < 0.97
    assert not any(caption.statements for caption in silent)
    assert all(caption.statements for caption in made if not caption.implies_default)


def test_most_captions_of_other_looks_tell_something_true(tokenizer: SimpleTokenizer) -> None:
    maker, rng = captions.Captioner(tokenizer, WORDS), np.random.default_rng(0)
    one, look = row("dog"), Look(ink=RED, ground="wood", finish="oil painting")
    known = captions.truths(one, look)
    assert known == {"red", "wood", "oil painting", "bold"}
    made = [maker.caption(one, look, rng) for _ in range(200)]
    for caption in made:
        assert not caption.implies_default
        assert set(caption.statements) <= known
        for statement in caption.statements:
            assert set(statement.split()) <= set(caption.words)
    assert 0.7 < sum(bool(caption.statements) for caption in made) / len(made) < 0.9


def test_captions_of_looks_alone_name_no_object(tokenizer: SimpleTokenizer) -> None:
    maker, rng = captions.Captioner(tokenizer, WORDS), np.random.default_rng(0)
    for _ in range(50):
        caption = maker.style_caption(row("dog"), Look(ink=RED), rng)
        assert caption.name == ""
        assert caption.statements
        assert "dog" not in caption.words


def test_easy_captions_use_the_icon_s_own_name(tokenizer: SimpleTokenizer) -> None:
    maker, rng = captions.Captioner(tokenizer, WORDS), np.random.default_rng(0)
    made = {maker.caption(row("alarm clock"), Look(), rng, easy=True).name for _ in range(50)}
    assert made == {"alarm clock"}
    usual = {maker.caption(row("alarm clock"), Look(), rng).name for _ in range(200)}
    assert usual == {"alarm clock", "alarm", "clock"}


def test_groups_are_two_looks_of_a_drawing_and_two_others_of_its_name(cache: Cache) -> None:
    batches = drawings.Batches(cache, np.arange(8), 12, 0)
    rows, _ = batches.draw(3, groups=2)
    assert len(rows) == 12
    for start in (4, 8):
        group = rows[start : start + 4]
        assert group[0] == group[1]
        assert len({one.words for one in group}) == 1


def test_things_that_sets_share_are_seen_more_than_interface_parts() -> None:
    dogs = [row("dog", f"set {i}") for i in range(5)]
    rows = [*dogs, row("arrow left"), row("odd compound name")]
    shares = drawings.weights(rows)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] > max(shares[5:])
    assert drawings.easy_weights(rows)[5:].sum() == 0


def test_all_names_are_equally_likely_and_so_are_the_drawings_of_one() -> None:
    rows = [
        *(row("dog", "first", slot=i) for i in range(3)),  # variants of one drawing
        row("dog", "second", slot=3),
        row("cat", "second", slot=4),
    ]
    shares = drawings.name_weights(rows)
    np.testing.assert_allclose(shares, [1 / 12, 1 / 12, 1 / 12, 1 / 4, 1 / 2])


def test_batches_depend_on_seed_and_step_only(cache: Cache) -> None:
    keep = np.arange(len(cache.rows))
    first, second = (drawings.Batches(cache, keep, 16, 3).draw(5) for _ in range(2))
    assert first[0] == second[0]
    assert first[1].random() == second[1].random()
    assert len(first[0]) == 16
    assert drawings.Batches(cache, keep, 16, 3).draw(6)[0] != first[0]


def test_pictures_come_in_the_order_of_their_rows(cache: Cache) -> None:
    coloured, black = cache.rows[6], cache.rows[0]
    rows = [coloured, black, coloured]
    gen = torch.Generator().manual_seed(0)
    images = drawings.painted(cache, rows, [Look()] * 3, gen, pose=0.0)
    plain = drawings.plain(cache, rows)
    # The white of grounds varies a little.
    assert (images - plain).abs().mean((1, 2, 3)).max() < 0.06


def test_a_caption_is_a_positive_of_every_picture_that_it_is_true_of() -> None:
    dog, cat = row("dog"), row("cat")
    samples = [
        PaintedDrawing(dog, Look()),
        PaintedDrawing(dog, Look(ink=RED)),
        PaintedDrawing(cat, Look(ink=RED, ground="wood")),
    ]
    told = [
        captions.Caption(["a", "dog"], "dog", (), implies_default=True),
        captions.Caption(["a", "red", "dog"], "dog", ("red",)),
        captions.Caption(["a", "red", "wood", "cat"], "cat", ("red", "wood")),
        captions.Caption(["red"], "", ("red",)),
        captions.Caption(["a", "dog"], "dog"),  # leaves the look out
    ]
    assert positives(samples, told).tolist() == [[1, 0, 0, 0, 1], [0, 1, 0, 1, 1], [0, 0, 1, 1, 0]]
    # A caption by another name is true of the same object.
    samples = [PaintedDrawing(row("alarm clock"), Look()), PaintedDrawing(row("clock"), Look())]
    told = [
        captions.Caption(["a", "clock"], "clock", (), implies_default=True),
        captions.Caption(["an", "alarm", "clock"], "alarm clock", (), implies_default=True),
    ]
    assert positives(samples, told).tolist() == [[1, 1], [1, 0]]


def test_loss_rewards_positives() -> None:
    same = torch.eye(4)[[0, 0, 1]]
    logits = 20 * same @ same.T
    true = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    wrong = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 1, 1]])
    right = teacher_recipe.contrastive_loss(logits, true)
    # Two positives share the probability, so the least loss is log 2 for two of three rows.
    assert right == pytest.approx(2 / 3 * np.log(2), abs=1e-4)
    assert right < teacher_recipe.contrastive_loss(logits, wrong)
    # Groups are averaged as the rows of a batch are.
    stacked = teacher_recipe.contrastive_loss(logits.expand(5, 3, 3), true.expand(5, 3, 3))
    assert stacked == pytest.approx(float(right))


def test_training_text_path_equals_open_clip(tokenizer: SimpleTokenizer) -> None:
    torch.manual_seed(0)
    model = teacher_recipe.build(small_teacher(), tokenizer.vocab_size).eval()
    ids = tokenizer(["a dog", "a clock in the style of red"])
    short = ids[:, :10]
    ours = teacher_recipe.encode_tokens(model, short)
    theirs = model.encode_text(ids)  # type: ignore[operator]
    torch.testing.assert_close(ours, theirs)


def test_interrupted_teacher_resumes(
    cache: Cache, tokenizer: SimpleTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = drawings.Batches(cache, np.arange(8), small_teacher().batch_size, 0)
    painted: list[int] = []

    def trainer() -> teacher_recipe.TeacherTrainer:
        captioner = captions.Captioner(tokenizer, WORDS)
        made = teacher_recipe.TeacherTrainer(small_teacher(), batches, captioner, tmp_path, 0)
        batch = made.batch

        def paint(step: int) -> CaptionedBatch:
            painted.append(step)
            return batch(step)

        monkeypatch.setattr(made, "batch", paint)
        return made

    steps: list[int] = []

    def run(made: teacher_recipe.TeacherTrainer) -> None:
        def stop() -> None:
            steps.append(made.step)
            if len(steps) == 2:
                raise KeyboardInterrupt
            made.note(0.5)

        made.run(stop)

    with pytest.raises(KeyboardInterrupt):
        run(trainer())
    resumed = trainer()
    run(resumed)
    # Each run paints one batch ahead, but none after the last step.
    assert painted == [0, 1, 2, 1, 2]
    run(trainer())
    assert painted == [0, 1, 2, 1, 2]
    # The step whose validation was interrupted is made again.
    assert steps == [1, 2, 2, 3]
    assert [(step, accuracy) for step, _, accuracy in resumed.curve] == [
        (1, 0.5), (2, 0.5), (3, 0.5)
    ]  # fmt: skip
    assert all(torch.isfinite(p).all() for p in resumed.average.parameters())


def test_generator_trains_with_codes_resumes_and_exports_official_names(
    cache: Cache, tokenizer: SimpleTokenizer, tmp_path: Path
) -> None:
    recipe = GeneratorRecipe(
        channel_multipliers=(1, 1), latent_channels=32, codes=16, steps=3, free_steps=1,
        batch_size=4, checkpoint_every=2, adversarial_from=1, critic_channels=8,
    )  # fmt: skip
    teacher = teacher_recipe.build(small_teacher(), tokenizer.vocab_size).eval()
    batches = drawings.Batches(cache, np.arange(8), recipe.batch_size, 0)
    trainer, begun, resumed = (
        generator.GeneratorTrainer(recipe, batches, teacher, tmp_path / name, 0)
        for name in ("whole", "parts", "parts")
    )
    before = [p.clone() for p in trainer.critic.parameters()]
    trainer.run()
    network = trainer.network
    interrupt_after_saving(begun)
    resumed.run()
    assert same_weights(resumed.network, network)
    assert same_weights(resumed.critic, trainer.critic)
    assert network.quantize.started
    pairs = zip(before, trainer.critic.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)
    state = network.official()
    assert {key.split(".")[0] for key in state} == {
        "encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"
    }  # fmt: skip
    assert state["quantize.embedding.weight"].shape == (16, 32)
    made = network.reconstruct(torch.rand(2, 3, 64, 64))
    assert made.shape == (2, 3, 64, 64)


SMALL_VQ = GeneratorRecipe(
    channel_multipliers=(1, 1, 1, 2), latent_channels=8, codes=16, residual_blocks=0
)


def diffusion_trainer(
    cache: Cache, tokenizer: SimpleTokenizer, folder: Path, steps: int
) -> diffusion.DiffusionTrainer:
    torch.manual_seed(0)
    clip = teacher_recipe.build(small_teacher(), tokenizer.vocab_size).eval().requires_grad_(False)
    return diffusion.DiffusionTrainer(
        DiffusionRecipe(channels=(64, 64), steps=steps, batch_size=4, checkpoint_every=1),
        SMALL_VQ,
        drawings.Batches(cache, np.arange(8), 4, 7, drawings.name_weights),
        generator.Autoencoder(SMALL_VQ).eval().requires_grad_(False),
        Teacher(clip, tokenizer, "small", preprocess={}),
        captions.Captioner(tokenizer, WORDS),
        folder,
        0,
    )


def test_a_vqgan_decodes_the_same_as_an_object_of_diffusers() -> None:
    torch.manual_seed(0)
    network = generator.Autoencoder(SMALL_VQ).eval()
    latents = network.encode(torch.rand(2, 3, 64, 64) * 2 - 1).detach()
    space = LatentSpace(8, 8)  # all components, so that nothing is lost
    space.fit(latents)
    copied = diffusion.autoencoder(SMALL_VQ, network, space)
    components = space(latents)
    assert components.square().mean() == pytest.approx(1, rel=0.02)
    codes, _ = network.quantize(latents)
    decoded = copied.decode(components / copied.config.scaling_factor).sample
    torch.testing.assert_close(decoded, network.decode(codes), rtol=1e-3, atol=1e-3)


def test_principal_components_are_those_of_the_most_variance() -> None:
    gen = torch.Generator().manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(6, 6, generator=gen))[0]
    values = torch.randn(4, 6, 8, 8, generator=gen) * torch.tensor([3.0, 2, 1, 0, 0, 0])[
        :, None, None
    ]  # fmt: skip
    latents = torch.einsum("bchw,cd->bdhw", values, mixing) + 5
    space = LatentSpace(6, 3)
    space.fit(latents)
    components = space(latents)
    assert components.square().mean() == pytest.approx(1, rel=0.02)
    assert (components.std((0, 2, 3)).diff() < 0).all()
    back = torch.einsum("bkhw,ck->bchw", components * space.scale, space.axes)
    torch.testing.assert_close(back + space.mean[:, None, None], latents, rtol=1e-4, atol=1e-3)


def test_all_names_of_a_diffusion_model_are_equally_likely_at_each_step(
    cache: Cache, tokenizer: SimpleTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = diffusion_trainer(cache, tokenizer, tmp_path, 1)
    drawn = Mock(wraps=trainer.batches.draw)
    monkeypatch.setattr(trainer.batches, "draw", drawn)
    for step in (0, 10**6):
        trainer.batch(step, 0.35)
    assert [call.kwargs["strength"] for call in drawn.call_args_list] == [0, 0]
    rows = trainer.batches.rows
    share = Counter[str]()
    for drawing, weight in zip(rows, trainer.batches.easy, strict=True):
        share[drawing.concept] += weight
    assert share == {name: pytest.approx(1 / len(share)) for name in share}


def test_a_diffusion_model_learns_and_resumes_to_the_same_weights(
    cache: Cache, tokenizer: SimpleTokenizer, tmp_path: Path
) -> None:
    whole = diffusion_trainer(cache, tokenizer, tmp_path / "whole", 3)
    whole.run()
    interrupt_after_saving(diffusion_trainer(cache, tokenizer, tmp_path / "parts", 3))
    resumed = diffusion_trainer(cache, tokenizer, tmp_path / "parts", 3)
    resumed.run()
    assert [step for step, _ in resumed.curve] == [1, 2, 3]
    assert resumed.curve == whole.curve
    assert same_weights(resumed.average, whole.average)


def test_the_noise_that_the_unet_learns_from_is_what_its_scheduler_removes(
    cache: Cache, tokenizer: SimpleTokenizer, tmp_path: Path
) -> None:
    """With the true velocity, a step of the scheduler leads back to the clean latents."""
    trainer, scheduler = diffusion_trainer(cache, tokenizer, tmp_path, 1), diffusion.scheduler()
    scheduler.set_timesteps(4)
    clean, noise = torch.randn(1, 8, 8, 8), torch.randn(1, 8, 8, 8)
    time = scheduler.timesteps[-1]
    signal, sigma = trainer.alphas[time].sqrt(), (1 - trainer.alphas[time]).sqrt()
    velocity = signal * noise - sigma * clean
    step = scheduler.step(velocity, time, signal * clean + sigma * noise)
    torch.testing.assert_close(step.prev_sample, clean, rtol=1e-4, atol=1e-4)


def test_perceptual_gradients_stay_finite_on_empty_images(tokenizer: SimpleTokenizer) -> None:
    teacher = teacher_recipe.build(small_teacher(), tokenizer.vocab_size).eval()
    blank = torch.ones(2, 3, 64, 64, requires_grad=True)
    generator.PerceptualLoss(teacher)(blank, torch.rand(2, 3, 64, 64)).backward()
    assert blank.grad is not None
    assert blank.grad.abs().max() < 10


def test_psnr_of_known_errors() -> None:
    found = psnr(torch.full((1, 3, 2, 2), 0.1), torch.zeros(1, 3, 2, 2))
    assert found == pytest.approx(20.0, abs=1e-4)


def test_hue_and_chroma_of_known_pictures() -> None:
    red, green = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    real = torch.stack([red, green]).view(2, 3, 1, 1).expand(2, 3, 4, 4)
    same = colours_kept(real, real)
    assert same == (pytest.approx(0, abs=1e-3), pytest.approx(1))
    # Red shown as green is 120 degrees off, green as it is not at all: two sectors of hue.
    turned = torch.stack([green, green]).view(2, 3, 1, 1).expand(2, 3, 4, 4)
    assert colours_kept(turned, real)[0] == pytest.approx(60, abs=1e-3)
    paler = colours_kept(0.5 * real + 0.25, real)
    assert paler == (pytest.approx(0, abs=1e-3), pytest.approx(0.5))
    # Grey pixels have no hue and do not count.
    grey = torch.full((1, 3, 4, 4), 0.5)
    assert colours_kept(torch.cat([real, grey]), torch.cat([real, grey])) == same
