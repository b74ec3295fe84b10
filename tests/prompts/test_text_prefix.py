"""A sentence in two pieces has the embedding, and the gradient, of the whole one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfkd.models.teacher import Teacher
from dfkd.prompts.pseudo_words import PseudoWords, can_split
from tests.helpers.tiny_models import VIT, load_teacher, model_config

NAMES = ["dog", "alarm clock", "dog"]
TEMPLATES = ["{class} in the style of {style}", "{style} {class} here", "a {class}, {style}"]

SPLIT: dict[str, dict[str, Any]] = {
    "clip": model_config(VIT),
    "quickgelu": model_config(VIT, quick=True),
    "custom": model_config(VIT, custom=True),
    "scaled": model_config(VIT, ls_init_value=0.5),
}
WHOLE: dict[str, dict[str, Any]] = {
    "not causal": model_config(VIT, custom=True, no_causal_mask=True),
    "other blocks": model_config(VIT, custom=True, qk_norm=True),
}


def whole(teacher: Teacher, words: PseudoWords, pseudo: Tensor) -> Tensor:
    """The embeddings by the tower's own pass over the full context."""
    tokens, places = words.tokens(NAMES, TEMPLATES)
    embedded = teacher.embed_tokens(tokens)
    for row, place in enumerate(places):
        embedded = embedded.index_put((torch.tensor(row), place), pseudo[row])
    return torch.nn.functional.normalize(teacher.encode_embeddings(embedded, tokens), dim=-1)


@pytest.mark.parametrize("kind", [*SPLIT, *WHOLE])
def test_a_cached_prefix_changes_neither_embedding_nor_gradient(kind: str, tmp_path: Path) -> None:
    teacher = load_teacher(tmp_path, (SPLIT | WHOLE)[kind])
    assert can_split(teacher) == (kind in SPLIT)
    words = PseudoWords(teacher, TEMPLATES[0])
    pseudo = torch.randn(3, teacher.token_table.shape[1], requires_grad=True)
    sentences = words.sentences(NAMES, TEMPLATES)
    expected = whole(teacher, words, pseudo)
    for _ in range(2):  # the beginning serves again
        found = sentences.encode(pseudo)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = torch.linspace(-1, 1, found.numel()).view(found.shape)
    (gradient,) = torch.autograd.grad((found * weights).sum(), pseudo)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), pseudo)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_a_sentence_that_fills_the_context_is_the_same_in_pieces(tmp_path: Path) -> None:
    teacher = load_teacher(tmp_path, model_config(VIT))
    words = PseudoWords(teacher, TEMPLATES[0])
    long = "dog " * (teacher.context_length - 3 - 4)
    tokens, _ = words.tokens([long], TEMPLATES[:1])
    assert tokens.shape[1] == teacher.context_length
    pseudo = teacher.token_table[teacher.content_tokens("music")]
    alone = words.encode([long], pseudo)
    beside = words.encode([long, "dog"], pseudo.expand(2, -1))
    torch.testing.assert_close(beside[:1], alone)
    torch.testing.assert_close(beside[1:], words.encode(["dog"], pseudo))
    torch.testing.assert_close(alone, teacher.encode_text([f"{long} in the style of music"]))
