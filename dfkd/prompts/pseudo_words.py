"""Pseudo-words: a free vector in the place of a style word, between the two halves of Eq 7."""

import functools
import string
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.errors import ManifestError
from dfkd.models.teacher import Teacher
from dfkd.models.text_prefix_cache import Beginning, can_split

MAX_REDRAWS = 8
"""Disturbed templates that may not fit the context length before the plain one is taken."""


class PseudoWords:
    """Sentences of one template in which the style word is a vector."""

    def __init__(self, teacher: Teacher, template: str) -> None:
        self.teacher = teacher
        self.template = template
        self._frame = teacher.tokenize([""])[0]
        if int(self._frame.count_nonzero()) != 2:
            raise ManifestError(
                "teacher.model",
                "pseudo-words need a tokenizer that frames a text by a start and an end token",
                teacher.name,
                "choose a CLIP teacher, or prompts.method vanilla or mix",
            )
        self._content = functools.lru_cache(maxsize=65536)(self._tokens_of)

    def text(self, name: str) -> str:
        """The prompt of class `name` as a person reads it, with `*` for the pseudo-word."""
        return self.template.replace("{class}", name).replace("{style}", "*")

    def encode(
        self, names: Sequence[str], pseudo: Tensor, templates: Sequence[str] | None = None
    ) -> Tensor:
        """E_sentence of each class name with its pseudo-word in the template (Eq 7-9).

        Args:
            names: N class names.
            pseudo: [N, D] vectors in the token-embedding space; gradients flow to them.
            templates: one for each name, instead of the manifest's.

        Returns:
            Unit embeddings [N, E], float32.

        Raises:
            ManifestError: a sentence does not fit the teacher's context length.
        """
        return self.sentences(names, templates).encode(pseudo)

    def sentences(
        self, names: Sequence[str], templates: Sequence[str] | None = None
    ) -> "Sentences":
        """The same sentences for other pseudo-words again and again; arguments as of `encode`."""
        tokens, places = self.tokens(names, templates or [self.template] * len(names))
        return Sentences(self.teacher, tokens, places, int(self._frame[1]))

    def tokens(self, names: Sequence[str], templates: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids [N, L] and the place [N] of the pseudo-word in each.

        L is the context length, or of a causal teacher no more than the longest sentence needs: of
        a context of 77 that is a few, and the work grows with it.
        """
        rows, places, longest = [], [], 0
        for name, template in zip(names, templates, strict=True):
            row = self._sentence(name, template)
            if row is None:
                raise ManifestError(
                    "prompts.template",
                    f"must fit {self.teacher.context_length} tokens with every class name",
                    template.replace("{class}", name),
                    "shorten the template or the name",
                )
            rows.append(row[0])
            places.append(row[1])
            longest = max(longest, row[2])
        length = longest if self.teacher.causal else self.teacher.context_length
        device = self.teacher.token_table.device
        return torch.stack(rows)[:, :length].to(device), torch.tensor(places, device=device)

    def disturbed(self, name: str, kind: str, share: float, draw: np.random.Generator) -> str:
        """The template with a share of the letters of its frozen words shuffled or substituted.

        A disturbed template that no longer fits the context is drawn anew, a few times.
        """
        for _ in range(MAX_REDRAWS):
            template = disturb(self.template, kind, share, draw)
            if self._sentence(name, template) is not None:
                return template
        return self.template

    def around_the_mean(self, noise: Tensor, scale: float) -> Tensor:
        """V = mu + e * eps * sigma (Eq 8-11): pseudo-words [N, D] on the teacher's device.

        Args:
            noise: eps [N, D], standard normal.
            scale: e; mu and sigma are those of the token embeddings.
        """
        table = self.teacher.token_table
        return table.mean(dim=0) + scale * noise.to(table.device) * table.std(dim=0)

    def _sentence(self, name: str, template: str) -> tuple[Tensor, int, int] | None:
        """Tokens in the whole context, the pseudo-word's place, the length; None if too long."""
        before, after = template.replace("{class}", name).split("{style}")
        prefix, suffix = self._content(before), self._content(after)
        length = len(prefix) + len(suffix) + 3
        if length > self.teacher.context_length:
            return None
        start, end = int(self._frame[0]), int(self._frame[1])
        # Any word's id will do for the pseudo-word, whose embedding is replaced: it must only stay
        # below the end token's, by which CLIP finds the place to pool.
        row = self._frame.clone()
        row[:length] = torch.tensor([start, *prefix, 0, *suffix, end])
        return row, 1 + len(prefix), length

    def _tokens_of(self, text: str) -> tuple[int, ...]:
        return tuple(self.teacher.content_tokens(text))


class Sentences:
    """N sentences in which one word each is still to come."""

    def __init__(self, teacher: Teacher, tokens: Tensor, places: Tensor, end: int) -> None:
        """Token ids [N, L], the place [N] of the word that is to come, and the end token's id."""
        self.teacher, self.tokens, self.places = teacher, tokens, places
        self._beginning: Beginning | None = None
        if can_split(teacher):
            self._beginning = Beginning(teacher, tokens[:, : int(places.max())], places)
            after = (tokens == end).int().argmax(dim=1) - places
            steps = torch.arange(int(after.max()) + 1, device=tokens.device)
            last = tokens.shape[1] - 1
            self._rest = tokens.gather(1, (places[:, None] + steps).clamp_max(last))

    def encode(self, pseudo: Tensor) -> Tensor:
        """Unit embeddings [N, E], float32, with the vectors [N, D] for words."""
        if self._beginning is not None:
            embedded = self.teacher.embed_tokens(self._rest)
            embedded = torch.cat([pseudo[:, None].to(embedded.dtype), embedded[:, 1:]], dim=1)
            return F.normalize(self._beginning.end(embedded, self._rest).float(), dim=-1)
        return encode_whole(self.teacher, self.tokens, self.places, pseudo)


def encode_whole(teacher: Teacher, tokens: Tensor, places: Tensor, pseudo: Tensor) -> Tensor:
    """Unit embeddings [N, E] of sentences [N, L] whose word at `places` [N] is a vector [N, D]."""
    embedded = teacher.embed_tokens(tokens)
    slot = F.one_hot(places, tokens.shape[1]).bool()[..., None]
    embedded = torch.where(slot, pseudo[:, None].to(embedded.dtype), embedded)
    return F.normalize(teacher.encode_embeddings(embedded, tokens).float(), dim=-1)


def disturb(template: str, kind: str, share: float, draw: np.random.Generator) -> str:
    """Change letters of a template outside its slots; its length and all else stay.

    Args:
        kind: `shuffle` permutes the chosen letters, `substitute` replaces each by another one.
        share: of the letters, rounded, and two at the least, as one letter cannot be shuffled. So
            many end up changed, or as many as a permutation can change, within one letter.
    """
    places = [place for place in _frozen(template) if template[place].isalpha()]
    count = max(2, round(share * len(places)))
    order = draw.permutation(places).tolist()
    if kind == "shuffle":
        changes = _moved(template, order, count)
    else:
        changes = {place: _another(template[place], draw) for place in order[:count]}
    return "".join(changes.get(place, letter) for place, letter in enumerate(template))


def _frozen(template: str) -> Iterator[int]:
    """The places outside `{...}`."""
    inside = 0
    for place, letter in enumerate(template):
        inside += (letter == "{") - (letter == "}")
        if not inside:
            yield place


def _moved(template: str, order: Sequence[int], count: int) -> dict[int, str]:
    """The letters that `count` places get from each other; which places, their `order` decides.

    The places stand in a ring, those of one letter side by side, and each takes the letter that is
    as far ahead as the longest such group is long. So none gets its own letter again, as long as no
    group is longer than half of the ring, which is why a group takes no more places than that.
    """
    groups: dict[str, list[int]] = {}
    left = count
    for place in order:
        group = groups.setdefault(template[place].lower(), [])  # CLIP reads lower case only
        if left and len(group) < count // 2:
            group.append(place)
            left -= 1
    ring = [place for group in groups.values() for place in group]
    step = max(map(len, groups.values()), default=0)
    sources = ring[step:] + ring[:step]
    return {place: template[source] for place, source in zip(ring, sources, strict=True)}


def _another(letter: str, draw: np.random.Generator) -> str:
    """A small letter that is not this one."""
    others = [other for other in string.ascii_lowercase if other != letter.lower()]
    return others[int(draw.integers(len(others)))]
