"""Pseudo-words stand where the style word would, and disturbed templates keep class and slots."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfkd.models.teacher import Teacher
from dfkd.prompts.pseudo_words import PseudoWords, disturb
from tests.helpers.tiny_models import VIT, load_teacher, model_config

TEMPLATE = "{class} in the style of {style}"


@pytest.mark.parametrize("name", ["dog", "alarm clock"])
@pytest.mark.parametrize(
    "template", [TEMPLATE, "{style} {class}", "a {style} picture of a {class}"]
)
def test_the_embedding_of_a_real_word_gives_the_sentence_with_that_word(
    teacher: Teacher, template: str, name: str
) -> None:
    """Eq 7 with the vector of 'music', wherever the template has its slot."""
    vector = teacher.token_table[teacher.content_tokens("music")]
    encoded = PseudoWords(teacher, template).encode([name], vector)
    written = template.replace("{class}", name).replace("{style}", "music")
    assert torch.allclose(encoded, teacher.encode_text([written]), atol=1e-6)


FROZEN = st.text(st.sampled_from("abcdeE é,!"), max_size=20)
"""Texts of few letters, so that some occur often, in upper and lower case."""


def changed(before: str, after: str) -> int:
    """Places whose letters differ to a reader of lower case."""
    return sum(a != b for a, b in zip(before.lower(), after.lower(), strict=True))


def most(letters: str) -> int:
    """How many letters a permutation can change: a letter only takes the place of another one."""
    return min(len(letters), 2 * (len(letters) - max(map(letters.count, letters), default=0)))


@given(
    before=FROZEN,
    between=FROZEN,
    share=st.floats(0.01, 1),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["shuffle", "substitute"]),
)
def test_a_share_of_the_letters_of_frozen_words_is_disturbed(
    before: str, between: str, share: float, seed: int, kind: str
) -> None:
    template = f"{before}{{class}}{between}{{style}}"
    found = disturb(template, kind, share, np.random.default_rng(seed))
    assert found == disturb(template, kind, share, np.random.default_rng(seed))
    parts = re.fullmatch(r"(.*){class}(.*){style}", found)
    assert [len(part) for part in parts.groups()] == [len(before), len(between)]
    assert [c for c in found if not c.isalpha()] == [c for c in template if not c.isalpha()]
    assert [c.isalpha() for c in found] == [c.isalpha() for c in template]
    letters = [c for c in (before + between).lower() if c.isalpha()]
    wanted = max(2, round(share * len(letters)))
    if kind == "shuffle":
        assert sorted(found) == sorted(template)
        assert min(wanted, most("".join(letters))) - changed(template, found) in (0, 1)
    else:
        assert changed(template, found) == min(wanted, len(letters))


@pytest.mark.parametrize("kind", ["shuffle", "substitute"])
@pytest.mark.parametrize(("share", "letters"), [(0.1, 2), (0.3, 4), (0.5, 6), (1.0, 12)])
def test_both_kinds_disturb_the_same_share_of_the_papers_template(
    kind: str, share: float, letters: int
) -> None:
    """The share is of its twelve letters, and every one of them changes at times."""
    draw = np.random.default_rng(0)
    found = [disturb(TEMPLATE, kind, share, draw) for _ in range(200)]
    assert {changed(TEMPLATE, each) for each in found} == {letters}
    places = {
        i for each in found for i, (a, b) in enumerate(zip(TEMPLATE, each, strict=True)) if a != b
    }
    assert len(places) == 12


def test_a_disturbed_sentence_always_fits(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = PseudoWords(teacher, TEMPLATE)
    plain = int(teacher.tokenize([words.text("alarm clock")]).count_nonzero())
    monkeypatch.setattr(teacher, "context_length", plain)  # other letters give more tokens
    draw = np.random.default_rng(0)
    templates = [words.disturbed("alarm clock", "shuffle", 1.0, draw) for _ in range(50)]
    tokens, places = words.tokens(["alarm clock"] * 50, templates)
    assert tokens.shape[1] <= teacher.context_length
    ends = tokens.argmax(dim=1)
    assert bool((places < ends).all())


@pytest.mark.parametrize("text", [{}, {"no_causal_mask": True}])
def test_tokens_after_the_end_are_left_out_unless_they_are_read(
    text: dict[str, Any], tmp_path: Path
) -> None:
    """They are kept only for towers in which they change the embedding."""
    config = model_config(VIT)
    config["text_cfg"] |= text
    config["custom_text"] = bool(text)
    teacher = load_teacher(tmp_path, config)
    words, names = PseudoWords(teacher, TEMPLATE), ["dog", "alarm clock"]
    written = teacher.tokenize([words.text(name) for name in names])
    longest = max(int(sentence.count_nonzero()) for sentence in written)
    assert words.sentences(names).tokens.shape[1] == (teacher.context_length if text else longest)
    (token,) = teacher.content_tokens("music")
    encoded = words.encode(names, teacher.token_table[[token, token]])
    whole = teacher.encode_text([f"{name} in the style of music" for name in names])
    assert torch.allclose(encoded, whole, atol=1e-6)
