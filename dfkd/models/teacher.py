"""The teacher: a labeller whose text tower takes token embeddings, for prompts and generators.

E_token   embed_tokens                        Eq 7
E_sent.   encode_embeddings                   Eq 7
          hidden_states                       the same tower before pooling, for diffusion models
"""

from typing import Any

from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from dfkd.models.labeller import Labeller
from dfkd.models.teacher_architecture import Architecture
from dfkd.models.teacher_checks import require_token_embeddings
from dfkd.utils.types import Precision


class Teacher(Labeller):
    """A frozen CLIP, created by `Teacher.load`.

    Attributes:
        token_table: [K, D], the token embeddings, whose mean and spread Eq 8-11 use.
        causal: whether tokens after a sentence's end do not change its embedding.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        name: str,
        preprocess: dict[str, Any],
        precision: Precision = "float32",
    ) -> None:
        super().__init__(model, tokenizer, name, preprocess, precision)
        self.token_table: Tensor = self.text.token_embedding.weight
        self.causal = self.text.attn_mask is not None

    @classmethod
    def require(cls, architecture: Architecture) -> None:
        """Raise `ManifestError` for a text tower or a tokenizer unlike CLIP's."""
        require_token_embeddings(architecture.name, architecture.model)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """E_token of Eq 7: the embeddings [N, L, D] of token ids [N, L]."""
        dtype = self.text.transformer.get_cast_dtype()
        embeddings: Tensor = self.text.token_embedding(tokens).to(dtype)
        return embeddings

    def encode_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """E_sentence of Eq 7: the text embeddings [N, E] of token embeddings [N, L, D].

        They are differentiable and not normalised. `encode_embeddings(embed_tokens(t), t)` is
        bit-equal to open_clip's `encode_text(t)`.

        Args:
            tokens: token ids [N, L], whose end token gives the position of the output. For a
                `causal` teacher L may be shorter than the context length, down to the length of
                the longest sentence.
        """
        x, mask = self._tower_input(embeddings)
        return self.pool(self.text.transformer(x, attn_mask=mask), tokens)

    def hidden_states(self, embeddings: Tensor, layers: int) -> Tensor:
        """Hidden states [N, L, D] of token embeddings [N, L, D], after the final layer norm.

        With all layers they are what Stable Diffusion 1 is conditioned on; Stable Diffusion 2
        leaves out the last block.

        Args:
            layers: number of blocks, from the first on.
        """
        x, mask = self._tower_input(embeddings)
        hidden, _ = self.text.transformer.forward_intermediates(
            x, attn_mask=mask, indices=[layers - 1], stop_early=True
        )
        states: Tensor = self.text.ln_final(hidden)
        return states

    def _tower_input(self, embeddings: Tensor) -> tuple[Tensor, Tensor | None]:
        """The first block's input and the attention mask of token embeddings [N, L, D]."""
        text, length = self.text, embeddings.shape[1]
        mask = None if text.attn_mask is None else text.attn_mask[:length, :length]
        return embeddings + text.positional_embedding[:length].to(embeddings.dtype), mask

    def pool(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Text embeddings [N, E], not normalised, from the last block's output [N, L, D]."""
        # The state of the token with the highest id, which is the end.
        pooled = text_global_pool(self.text.ln_final(hidden), tokens)
        embeddings: Tensor = pooled @ self.text.text_projection
        return embeddings
