"""Pseudo-words: a free vector replaces the token embedding of the style word (Eq 7).

A sentence is tokenised in two pieces, before and after the style word, and encoded with the vector
between their token embeddings:

    start | dog in the style of | V | the rest, here none | end | padding

In a causal tower a token depends only on earlier tokens, so those before the pseudo-word do not
depend on it. Their keys and values are computed once, without gradients (`TextPrefix`), and each
update computes only the tokens from the pseudo-word on.
"""

import functools
import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.errors import ManifestError
from dfkd.models.teacher import Teacher

PADDING = 0
"""Id of the tokens behind a sentence."""

MAX_REDRAWS = 8
"""Draws of a disturbed template that fits the context length, before the plain one is used."""


class PseudoWords:
    """Encodes sentences of one template whose style word is a vector."""

    def __init__(self, teacher: Teacher, template: str) -> None:
        self.teacher = teacher
        self.template = template
        self._start = teacher.tokenizer.sot_token_id
        self._end = teacher.tokenizer.eot_token_id
        # Contrastive prompts tokenise a disturbed template for every prompt at every update. The
        # sentences hardly repeat, but their words do.
        self._tokens = functools.lru_cache(maxsize=65536)(teacher.content_tokens)

    def text(self, name: str) -> str:
        """The readable prompt of class `name`, with `*` for the pseudo-word."""
        return self.template.replace("{class}", name).replace("{style}", "*")

    def encode(
        self, names: Sequence[str], pseudo_words: Tensor, templates: Sequence[str] | None = None
    ) -> Tensor:
        """Encode the sentence of each class name with its pseudo-word in the template (Eq 7-9).

        Args:
            names: N class names.
            pseudo_words: [N, D] vectors in the space of token embeddings; gradients flow to them.
            templates: one template for each name; by default that of the manifest.

        Returns:
            Unit embeddings [N, E], float32.

        Raises:
            ManifestError: a sentence exceeds the teacher's context length.
        """
        return self.sentences(names, templates).encode(pseudo_words)

    def sentences(
        self, names: Sequence[str], templates: Sequence[str] | None = None
    ) -> "Sentences":
        """Tokenise sentences once, for repeated encoding; the arguments are those of `encode`."""
        tokens, positions = self.tokens(names, templates or [self.template] * len(names))
        return Sentences(self.teacher, tokens, positions)

    def tokens(self, names: Sequence[str], templates: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids [N, context] and the position [N] of the pseudo-word; both are on the CPU.

        Raises:
            ManifestError: a sentence exceeds the teacher's context length.
        """
        context = self.teacher.context_length
        found = []
        for name, template in zip(names, templates, strict=True):
            found.append(self.sentence(name, template))
            if len(found[-1][0]) > context:
                raise ManifestError(
                    "prompts.template",
                    f"must fit {context} tokens with every class name",
                    template.replace("{class}", name),
                    "shorten the template or the name",
                )
        return _padded(found, context)

    def disturbed(
        self, names: Sequence[str], kind: str, share: float, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """`tokens` of sentences in which some letters of the template's fixed words are changed.

        Changed letters can give more tokens. A sentence that exceeds the context is drawn again.

        Args:
            names: N class names, each of which gets letters of its own.
            kind, share, generator: as of `disturb`.
        """
        context = self.teacher.context_length
        found = []
        for name in names:
            for _ in range(MAX_REDRAWS):
                one = self.sentence(name, disturb(self.template, kind, share, generator))
                if len(one[0]) <= context:
                    break
            else:
                one = self.sentence(name, self.template)
            found.append(one)
        return _padded(found, context)

    def around_the_mean(self, noise: Tensor, scale: float) -> Tensor:
        """Pseudo-words V = mu + e * eps * sigma (Eq 8-11), [N, D] on the teacher's device.

        mu and sigma are the mean and the standard deviation of the token embeddings.

        Args:
            noise: eps [N, D], standard normal.
            scale: e.
        """
        table = self.teacher.token_table
        return table.mean(dim=0) + scale * noise.to(table.device) * table.std(dim=0)

    def sentence(self, name: str, template: str) -> tuple[list[int], int]:
        """The token ids of a sentence without padding, and the position of the pseudo-word."""
        before, after = template.replace("{class}", name).split("{style}")
        prefix = self._content(before)
        # The id of the pseudo-word does not matter, because its embedding is replaced. It must only
        # be lower than the id of the end token, where CLIP pools: it takes the highest id.
        return [self._start, *prefix, 0, *self._content(after), self._end], 1 + len(prefix)

    def _content(self, text: str) -> list[int]:
        """What `Teacher.content_tokens` gives for a piece of a sentence, from a cache of words."""
        # No token spans a space, and of ASCII open_clip's cleaning changes control characters,
        # entities (`&amp;`), case and spaces only. Other text it may repair as a whole.
        by_word = text.isascii() and text.isprintable() and "&" not in text
        parts = text.split() if by_word else (text,)
        return [token for part in parts for token in self._tokens(part)]


def _padded(sentences: Sequence[tuple[list[int], int]], context: int) -> tuple[Tensor, Tensor]:
    """Token ids [N, context] and positions [N] of sentences of at most `context` ids."""
    longest = max(len(ids) for ids, _ in sentences)
    rows = [ids + [PADDING] * (longest - len(ids)) for ids, _ in sentences]
    tokens = F.pad(torch.tensor(rows), (0, context - longest), value=PADDING)
    return tokens, torch.tensor([position for _, position in sentences])


class Sentences:
    """N tokenised sentences, which are encoded with other pseudo-words each time."""

    def __init__(self, teacher: Teacher, tokens: Tensor, positions: Tensor) -> None:
        """Prepare sentences of token ids [N, context], which are on the CPU.

        Args:
            positions: position [N] of the pseudo-word in each sentence, on the CPU.
        """
        # On the CPU, because contrastive prompts come here at each update, and to read a number
        # from a GPU is to wait for it.
        device, end = teacher.token_table.device, teacher.tokenizer.eot_token_id
        ends = (tokens == end).int().argmax(dim=1)
        if teacher.causal:
            # The tokens behind the longest sentence cannot change the embedding.
            tokens = tokens[:, : int(ends.max()) + 1]
        self.teacher, self._prefix = teacher, None
        if can_split(teacher):
            beginning = tokens[:, : int(positions.max())].to(device)
            self._prefix = TextPrefix(teacher, beginning, positions.to(device))
            # The ids [N, S] from the pseudo-word on, up to the end token of the longest rest. Where
            # this reaches beyond the row, the last id is repeated: after the end token nothing
            # matters to a causal tower.
            columns = positions[:, None] + torch.arange(int((ends - positions).max()) + 1)
            self._rest = tokens.gather(1, columns.clamp_max(tokens.shape[1] - 1)).to(device)
        self.tokens, self.positions = tokens.to(device), positions.to(device)

    def encode(self, pseudo_words: Tensor) -> Tensor:
        """Unit embeddings, float32 [N, E], of the sentences with these pseudo-words [N, D]."""
        if self._prefix is not None:
            embedded = self.teacher.embed_tokens(self._rest)
            # The rest begins with the id that stands for the pseudo-word.
            embedded = torch.cat([pseudo_words[:, None].to(embedded.dtype), embedded[:, 1:]], dim=1)
            return F.normalize(self._prefix.encode(embedded, self._rest).float(), dim=-1)
        return encode_whole(self.teacher, self.tokens, self.positions, pseudo_words)


def encode_whole(
    teacher: Teacher, tokens: Tensor, positions: Tensor, pseudo_words: Tensor
) -> Tensor:
    """Encode whole sentences, without a cached beginning.

    Args:
        tokens: token ids [N, L].
        positions: position [N] of the pseudo-word in each sentence.
        pseudo_words: vectors [N, D].

    Returns:
        Unit embeddings, float32 [N, E].
    """
    embedded = embed_with(teacher, tokens, positions, pseudo_words)
    return F.normalize(teacher.encode_embeddings(embedded, tokens).float(), dim=-1)


def embed_with(teacher: Teacher, tokens: Tensor, positions: Tensor, pseudo_words: Tensor) -> Tensor:
    """Token embeddings [N, L, D] of sentences with pseudo-words; arguments as `encode_whole`."""
    embedded = teacher.embed_tokens(tokens)
    # `where` and not an assignment in place, so that gradients flow to the pseudo-words.
    slot = F.one_hot(positions, tokens.shape[1]).bool()[..., None]
    return torch.where(slot, pseudo_words[:, None].to(embedded.dtype), embedded)


def can_split(teacher: Teacher) -> bool:
    """Whether a teacher's text tower is causal and made of open_clip's plain blocks."""
    # `type` and not `isinstance`: `_pass` repeats what exactly these classes compute.
    tower = teacher.text.transformer
    return (
        teacher.causal
        and type(tower) is Transformer
        and all(
            type(block) is ResidualAttentionBlock and type(block.attn) is nn.MultiheadAttention
            for block in tower.resblocks
        )
    )


class TextPrefix:
    """Keys and values of the first tokens of N sentences."""

    @torch.no_grad()
    def __init__(self, teacher: Teacher, tokens: Tensor, lengths: Tensor) -> None:
        """Compute the keys and values.

        Args:
            tokens: the first token ids [N, P].
            lengths: [N], the number of tokens in each row that belong to its prefix.
        """
        self.teacher, self.lengths = teacher, lengths
        self.seen: list[tuple[Tensor, Tensor]] = []
        """Keys and values [N, heads, P, D / heads] of each block."""
        text, size = teacher.text, tokens.shape[1]
        hidden = teacher.embed_tokens(tokens)
        hidden = hidden + text.positional_embedding[:size].to(hidden.dtype)
        causal = torch.ones(size, size, dtype=torch.bool, device=tokens.device).tril()
        for block in text.transformer.resblocks:
            hidden, keys, values = _pass(block, hidden, (), causal)
            self.seen.append((keys, values))
        # Prefixes have different lengths; tokens behind a prefix are hidden from what follows it.
        self.known = torch.arange(size, device=tokens.device) < lengths[:, None]

    def encode(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """Text embeddings [N, E], not normalised, of the sentences prefix + rest.

        Args:
            embedded: token embeddings [N, S, D] of the rest; gradients flow to them.
            tokens: token ids [N, S] of the rest, which contain the end of each sentence.
        """
        text, size = self.teacher.text, tokens.shape[1]
        steps = torch.arange(size, device=tokens.device)
        # Padding may exceed the context. Its position does not matter, because nothing attends to
        # tokens after a sentence's end.
        positions = (self.lengths[:, None] + steps).clamp_max(self.teacher.context_length - 1)
        hidden = embedded + text.positional_embedding[positions].to(embedded.dtype)
        # Which keys a token of the rest attends to, bool [N, 1, S, P + S]: all of its own prefix,
        # and the tokens of the rest up to itself.
        earlier = self.known[:, None, :].expand(-1, size, -1)
        later = (steps <= steps[:, None]).expand(len(tokens), -1, -1)
        mask = torch.cat([earlier, later], dim=2)[:, None]
        for block, before in zip(text.transformer.resblocks, self.seen, strict=True):
            hidden, _, _ = _pass(block, hidden, before, mask)
        return self.teacher.pool(hidden, tokens)


def _pass(
    block: Any, hidden: Tensor, before: tuple[Tensor, ...], mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A block's output [N, S, D], and the keys and values [N, heads, S, D / heads] of its input.

    It is the forward pass of open_clip's ResidualAttentionBlock, except that tokens also attend to
    earlier ones which are not in `hidden`.

    Args:
        hidden: the block's input [N, S, D].
        before: keys and values of earlier tokens, or nothing.
        mask: true where a token may attend to a key, broadcast to [N, heads, S, P + S].
    """
    attention = block.attn
    projected = F.linear(block.ln_1(hidden), attention.in_proj_weight, attention.in_proj_bias)
    queries, keys, values = (
        part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for part in projected.chunk(3, dim=2)
    )
    everything = (keys, values)
    if before:
        everything = (torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2))
    attended = F.scaled_dot_product_attention(queries, *everything, attn_mask=mask)
    hidden = hidden + block.ls_1(attention.out_proj(attended.transpose(1, 2).flatten(2)))
    return hidden + block.ls_2(block.mlp(block.ln_2(hidden))), keys, values


def disturb(template: str, kind: str, share: float, generator: np.random.Generator) -> str:
    """Change some letters of a template outside its slots; the length stays the same.

    It makes the positive of equation 12. The paper shuffles "some characters" of the frozen words,
    and compares with substituting them (Figure 8).

    Args:
        kind: `shuffle` permutes the selected letters, `substitute` replaces each by another one.
        share: share of the letters to change, rounded to at least two letters, because a single one
            cannot be shuffled. A shuffle may change fewer if too few letters differ.
    """
    positions = _letters(template)
    count = max(2, round(share * len(positions)))
    order = generator.permutation(positions).tolist()
    if kind == "shuffle":
        changes = _derangement(template, order, count)
    else:
        changes = {}
        for position in order[:count]:
            others = string.ascii_lowercase.replace(template[position].lower(), "")
            changes[position] = others[int(generator.integers(len(others)))]
    letters = list(template)
    for position, letter in changes.items():
        letters[position] = letter
    return "".join(letters)


@functools.lru_cache
def _letters(template: str) -> NDArray[np.int64]:
    """The positions of the letters outside a template's slots."""
    # A slot is one match, which begins with a brace.
    found = re.finditer(r"\{\w+\}|.", template)
    return np.array([match.start() for match in found if match[0].isalpha()], np.int64)


def _derangement(template: str, order: Sequence[int], count: int) -> dict[int, str]:
    """New letters for at most `count` positions, permuted so that each letter changes.

    Args:
        order: all positions that may change; earlier ones are preferred.
    """
    # Positions are selected into groups of equal letters (CLIP reads lower case only). No group may
    # be longer than half of the selection, or its letters could not all go elsewhere.
    groups: dict[str, list[int]] = {}
    remaining = count
    for position in order:
        if not remaining:
            break
        group = groups.setdefault(template[position].lower(), [])
        if len(group) < count // 2:
            group.append(position)
            remaining -= 1
    # The groups form a ring, one after the other. Each position takes the letter that lies as far
    # ahead as the longest group is long, which is therefore in another group: with the positions of
    # a a b b c, the step is 2, and the letters become b b c a a.
    ring = [position for group in groups.values() for position in group]
    step = max(map(len, groups.values()), default=0)
    sources = ring[step:] + ring[:step]
    return {position: template[source] for position, source in zip(ring, sources, strict=True)}
