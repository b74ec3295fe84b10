"""A cache of the text tower's keys and values for the tokens before a pseudo-word.

In a causal tower a token depends only on earlier tokens. The tokens before the pseudo-word
therefore do not depend on it. Their keys and values are computed once, without gradients, and each
update computes only the tokens from the pseudo-word on.
"""

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.models.teacher import Teacher


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
        return self.teacher.read_off(hidden, tokens)


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
