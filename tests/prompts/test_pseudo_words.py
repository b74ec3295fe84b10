"""Pseudo-words stand where the style word would, and disturbed templates keep class and slots."""

import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dfkd.config.manifest import Manifest
from dfkd.lab.benchmarks.prompts import TOKENISED
from dfkd.models.teacher import Teacher
from dfkd.models.teacher_architecture import build_tokenizer, read_architecture
from dfkd.prompts.contrastive import DISTURBANCE
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


def test_a_seed_disturbs_the_letters_that_it_always_has() -> None:
    """Versions that are resumed or made again rely on it."""
    draw = np.random.default_rng(0)
    kinds = ("shuffle", "substitute", "shuffle")
    assert [disturb(TEMPLATE, kind, 0.3, draw) for kind in kinds] == [
        "{class} in ehy stelt of {style}",
        "{class} in thl ktyln hf {style}",
        "{class} in thy seelt of {style}",
    ]


NAMES = [name for path in TOKENISED for name in Manifest.read(path).classes]


@functools.cache
def words_of(model: str, template: str) -> PseudoWords:
    """With the tokenizer of an architecture, and nothing else of a teacher."""
    tokenizer: Any = build_tokenizer(read_architecture(model))
    teacher: Any = SimpleNamespace(tokenizer=tokenizer, content_tokens=tokenizer.encode)
    return PseudoWords(teacher, template)


def require_open_clips_tokens(model: str, name: str, template: str) -> None:
    """The ids of a sentence are those that open_clip's tokenizer gives its two pieces."""
    words = words_of(model, TEMPLATE)
    ids, position = words.sentence(name, template)
    before, after = template.replace("{class}", name).split("{style}")
    encode = words.teacher.tokenizer.encode
    assert ids[1:position] == encode(before)
    assert ids[position + 1 : -1] == encode(after)


@pytest.mark.parametrize("model", ["ViT-B-32", "miniature"])
@pytest.mark.parametrize("kind", ["shuffle", "substitute"])
def test_disturbed_class_names_have_the_tokens_that_open_clip_gives_them(
    model: str, kind: str
) -> None:
    draw = np.random.default_rng(0)
    for name in NAMES * 5:
        require_open_clips_tokens(model, name, disturb(TEMPLATE, kind, DISTURBANCE, draw))


ODD = "ab \u00e9'\u2019&;#39ltamp\u0130\ufb01\u00c3\u00a9\t\x1b[0m\x1c\u0301<>_end.ft|"
PIECE = st.text(st.sampled_from(ODD) | st.characters(), max_size=30)
"""What open_clip's cleaning changes: entities, control characters, mojibake, ligatures."""


@pytest.mark.parametrize("model", ["ViT-B-32", "miniature"])
@given(name=PIECE, before=PIECE, between=PIECE, after=PIECE)
def test_any_text_has_the_tokens_that_open_clip_gives_it(
    model: str, name: str, before: str, between: str, after: str
) -> None:
    template = f"{before}{{class}}{between}{{style}}{after}"
    assume("{style}" not in before + name + between + after)
    require_open_clips_tokens(model, name, template)


def test_a_disturbed_sentence_always_fits(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = PseudoWords(teacher, TEMPLATE)
    plain = int(teacher.tokenize([words.text("alarm clock")]).count_nonzero())
    monkeypatch.setattr(teacher, "context_length", plain)  # other letters give more tokens
    draw = np.random.default_rng(0)
    tokens, places = words.disturbed(["alarm clock"] * 50, "shuffle", 1.0, draw)
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
