"""Looks: each word changes the image, captions of the default look do not mention it, and
evaluation has looks of its own.
"""

import pytest
import torch
from torch import Tensor

from dfkd.lab.miniature.looks import (
    DOMAINS,
    EVALUATION_ONLY,
    Look,
    LookSampler,
    domain_look,
    paint,
    smudged,
    vocabulary,
)
from dfkd.lab.miniature.painting import (
    ARRANGEMENTS,
    BLACK,
    CONTRAST,
    FINISHES,
    GROUND_COLOURS,
    MATERIALS,
    NAMES,
    STROKES,
    WHITE,
    brightness,
    silhouette,
)
from dfkd.prompts.styles import MINIATURE


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ring() -> Tensor:
    """A square ring with a dot beside it: [1, 64, 64]."""
    ink = torch.zeros(1, 64, 64)
    ink[:, 16:48, 16:48] = 1
    ink[:, 24:40, 24:40] = 0
    ink[:, 6:9, 30:33] = 1
    return ink


def painted(look: Look, count: int = 2, seed: int = 0) -> Tensor:
    return paint(
        ring().expand(count, -1, -1), torch.zeros(0, 4, 64, 64), [look] * count, gen(seed), 0.0
    )


PARTS = [
    *(Look(stroke=word) for word in STROKES),
    *(
        Look(WHITE if brightness(colour) < 0.5 else BLACK, ground_colour=colour, ground=word)
        for word, colours in GROUND_COLOURS.items()
        for colour in [NAMES.index(colours[0])]
    ),
    *(Look(material=word, ink=NAMES.index("red")) for word in MATERIALS),
    *(Look(arrangement=word) for word in ARRANGEMENTS),
    *(Look(finish=word, ink=NAMES.index("red")) for word in FINISHES),
]


@pytest.mark.parametrize("look", PARTS, ids=lambda one: " ".join(one.words(own_colours=True)))
def test_each_word_changes_the_picture_and_is_reproducible(look: Look) -> None:
    images = painted(look)
    assert images.shape == (2, 3, 64, 64)
    assert torch.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(images, painted(look))
    bare = painted(Look(ink=look.ink, ground_colour=look.ground_colour))
    assert (images - bare).abs().mean() > 0.003
    # The drawing can still be seen.
    assert images.std(dim=(2, 3)).max() > 0.05


def test_the_default_look_is_black_on_white() -> None:
    image = painted(Look(), 1)[0]
    ink = ring()[0] > 0
    assert image[:, ink].max() < 0.15
    assert image[:, ~ink].min() > 0.85


def test_what_the_ink_encloses_is_the_silhouette() -> None:
    filled = silhouette(ring().unsqueeze(1))[0, 0]
    assert filled[16:48, 16:48].min() == 1
    assert filled.sum() == 32 * 32 + 9


def test_a_body_fills_what_the_ink_encloses() -> None:
    look = Look(body=NAMES.index("red"))
    inside = painted(look, 1)[0, :, 28:36, 28:36].mean((1, 2))
    assert inside[0] > inside[1] + 0.4
    assert inside[0] > inside[2] + 0.4


def test_words_are_the_statements_that_are_true() -> None:
    red = Look(ink=NAMES.index("red"), ground="wood", stroke="dashed", finish="faded")
    assert set(red.words(own_colours=False)) == {"red", "wood", "dashed", "faded"}
    assert set(red.words(own_colours=True)) == {"colourful", "wood", "dashed", "faded"}
    assert Look().words(own_colours=False) == ("plain", "black")
    # A finish without colours makes the names of colours untrue.
    grey = Look(ink=NAMES.index("red"), ground_colour=NAMES.index("blue"), finish="engraved")
    assert grey.words(own_colours=False) == ("engraved",)


def test_sampled_looks_can_be_seen_and_told() -> None:
    sampler, known = LookSampler(gen()), set(vocabulary())
    sampled = [sampler.draw(own_colours=False, default=0.4) for _ in range(600)]
    share = sum(look.default for look in sampled) / len(sampled)
    assert 0.33 < share < 0.47
    for look in sampled:
        if look.default:
            continue
        assert abs(brightness(look.ink) - brightness(look.ground_colour)) >= CONTRAST
        words = look.words(own_colours=False)
        assert words
        assert set(words) <= known
    assert len({word for look in sampled for word in look.words(own_colours=False)}) > 80


def test_drawings_in_their_own_colours_never_get_the_default_look() -> None:
    sampler = LookSampler(gen())
    assert not any(sampler.draw(own_colours=True, default=1.0).stroke for _ in range(50))


def test_shared_looks_are_few_and_of_the_drawing_s_kind() -> None:
    kinds = [True, False] * 100
    looks = LookSampler(gen()).shared(kinds, 3, 0.4)
    default = [look.default for look in looks]
    assert not any(default[::2])
    assert 0.3 < sum(default) / 100 < 0.5
    assert len(set(looks[::2])) == 3
    assert len({look for look in looks[1::2] if not look.default}) == 3


def test_evaluation_has_looks_that_training_never_draws_or_names() -> None:
    assert EVALUATION_ONLY.isdisjoint({*vocabulary(), *MINIATURE})
    sampler = LookSampler(gen(1))
    drawn = {w for _ in range(800) for w in sampler.draw(False, 0.0).words(own_colours=False)}
    assert EVALUATION_ONLY.isdisjoint(drawn)
    shown = {w for name in DOMAINS for w in domain_look(name, gen()).words(own_colours=False)}
    assert shown >= EVALUATION_ONLY


def test_exactly_one_domain_of_drawings_in_one_ink_is_the_default_look() -> None:
    plain = [name for name in DOMAINS if domain_look(name, gen()) == Look()]
    assert set(plain) == {"black_on_white", "clipart", "color_emoji"}


def test_poses_move_drawings() -> None:
    moved = paint(ring(), torch.zeros(0, 4, 64, 64), [Look()], gen(), 1.0)
    assert (moved - painted(Look(), 1)).abs().mean() > 0.02


def test_smudges_hit_their_share() -> None:
    images = torch.rand(200, 3, 64, 64, generator=gen())
    changed = (smudged(images, gen(), 0.25) != images).flatten(1).any(1)
    assert 0.15 < changed.float().mean() < 0.35
    assert torch.equal(smudged(images, gen(), 0.0), images)


@pytest.mark.parametrize("own", [True, False])
def test_layers_of_both_kinds_stand_on_their_grounds(own: bool) -> None:
    layer = torch.zeros(1, 4, 64, 64)
    layer[:, 0, 20:40, 20:40] = layer[:, 3, 20:40, 20:40] = 1
    look = Look(ground_colour=NAMES.index("blue"), ink=WHITE if own else BLACK)
    inks = ring()[:0] if own else ring()
    image = paint(inks, layer if own else layer[:0], [look], gen(), 0.0)[0]
    corner = image[:, :4, :4].mean((1, 2))
    assert corner[2] > corner[0] + 0.4
    middle = image[:, 28:36, 28:36].mean((1, 2)) if own else image[:, 18:22, 18:22].mean((1, 2))
    assert (middle[0] > 0.9) == own
