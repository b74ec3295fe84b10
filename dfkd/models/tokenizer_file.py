"""The tokenizers of SigLIP, SigLIP 2 and CLIPA, read from a file `tokenizer.json`.

In: the file, and what the model's configuration says of it. Out: the token ids that open_clip's
`HFTokenizer` gives, without the library that it needs. What that library reads from other files
follows here from the kind of the tokenizer, so that one file, whose hash is kept, says it all.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import get_clean_fn
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from dfkd.errors import ManifestError, one_line
from dfkd.utils import strict_json

TOKENIZER = "tokenizer.json"
"""The file's name, on hubs and in folders."""

MAX_BYTES = 64 << 20
"""Of the file; the largest published one, of SigLIP 2, has 34.4 MB."""
MAX_CHARSMAP = 1 << 20
"""Characters of a table of replacements; SentencePiece's own has some 300,000."""

SPACES = " {2,}"
"""The only pattern of published tokenizers: it takes several spaces for one."""

UNHEARD = "\ue000"
"""A sign without a meaning."""

PADDING = {"Unigram": "</s>", "BPE": "<pad>", "WordPiece": "[PAD]"}
"""What fills a text up by the kind of a tokenizer, if the file does not say it: SigLIP's T5, SigLIP
2's Gemma and CLIPA's BERT."""


class TokenizerFile:
    """A tokenizer from a file; called with texts it gives their ids, int64 [N, L].

    Attributes:
        context_length: L, the number of tokens of a text with its marks and padding.
        marks: how many special tokens a text gets, such as one for its end.
        all_special_ids: the ids of special tokens, without the one for what is unknown.
    """

    def __init__(
        self,
        path: Path,
        context_length: int,
        vocabulary: int,
        clean: str = "whitespace",
        strip_sep_token: bool = False,
    ) -> None:
        """Read and check the file.

        Args:
            vocabulary: the number of ids that the text tower knows.
            clean: open_clip's name of what happens to a text before it is cut into tokens.
            strip_sep_token: whether the mark of an end, BERT's `[SEP]`, becomes the id 0.

        Raises:
            ValueError: the file is damaged, unsafe, or of another kind or size.
        """
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        tree = strict_json.parse(data)
        if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
            raise ValueError("no tokenizer with a model")
        _refuse_unsafe(tree)
        self._clean = get_clean_fn(clean)
        with _panics_told():
            self._tokenizer = Tokenizer.from_buffer(data)
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        kind = type(self._tokenizer.model).__name__
        if kind not in PADDING:
            raise ValueError(f"must be one of {', '.join(PADDING)}, not {kind}")
        self.context_length, self._vocabulary = context_length, vocabulary
        self.marks = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if self.marks >= context_length:
            raise ValueError(f"its {self.marks} marks leave no room in {context_length} tokens")
        # Tokens added to a vocabulary may have ids beyond the text tower's, as T5's `<extra_id_0>`
        # do: no text that has been cleaned holds them.
        added = self._tokenizer.get_added_tokens_decoder()
        vocabulary_ids = self._tokenizer.get_vocab(with_added_tokens=False).values()
        used = max(set(vocabulary_ids) - added.keys(), default=-1) + 1
        if used > vocabulary:
            raise ValueError(f"it has {used} tokens, and the text tower knows {vocabulary}")
        stated = tree.get("padding") or {}
        self._padding = self._id(str(stated.get("pad_token") or PADDING[kind]))
        self._stripped = self._id("[SEP]") if strip_sep_token else None
        model = tree["model"]
        named = self._tokenizer.token_to_id(str(model.get("unk_token")))
        self._unknown = model.get("unk_id") if kind == "Unigram" else named
        special = {number for number, token in added.items() if token.special}
        self.all_special_ids = frozenset(special - {self._unknown})
        # What is wrong in a file may show only here, or only with a sign that no tokenizer knows.
        with _panics_told():
            self._tokenizer.encode(f"a {UNHEARD}")

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids of the texts: cut to the context, with marks, and filled up on the right.

        Raises:
            ManifestError: the tokenizer or the text tower cannot read a text.
        """
        rows = torch.full((len(texts), self.context_length), self._padding)
        for row, text in zip(rows, texts, strict=True):
            content = self._content(text)
            content.truncate(self.context_length - self.marks)
            ids = self._tokenizer.post_process(content).ids
            if max(ids, default=0) >= self._vocabulary:
                rule = f"a token of {text[:80]!r} is none of its text tower's {self._vocabulary}"
                raise ManifestError("teacher.model", rule, max(ids), "change the text")
            row[: len(ids)] = torch.tensor(ids)
        if self._stripped is not None:
            rows[rows == self._stripped] = 0
        return rows

    def encode(self, text: str) -> list[int]:
        """The ids of a text without marks and padding, not cut; none if nothing in it is known.

        Raises:
            ManifestError: the tokenizer cannot read the text.
        """
        content = self._content(text)
        # SentencePiece gives a token to the space before a word that it does not know.
        pairs = zip(content.ids, content.tokens, strict=True)
        known = any(number != self._unknown and token.strip("▁") for number, token in pairs)
        return list(content.ids) if known else []

    def _content(self, text: str) -> Encoding:
        """The tokens of a text without marks."""
        try:
            with _panics_told():
                return self._tokenizer.encode(self._clean(text), add_special_tokens=False)
        except ValueError as error:
            rule = f"its tokenizer must read every text, such as {text[:80]!r} ({error})"
            raise ManifestError("teacher.model", rule, TOKENIZER, "give an intact file") from None

    def _id(self, token: str) -> int:
        """The id of a special token; raises `ValueError` if there is none or it is too large."""
        number = self._tokenizer.token_to_id(token)
        if number is None or number >= self._vocabulary:
            raise ValueError(f"it lacks the token {token!r}")
        return int(number)


def _refuse_unsafe(tree: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a tokenizer is random, or may take any time or memory."""
    if tree["model"].get("dropout"):
        raise ValueError("its dropout makes it random")
    level: list[Any] = [value for key, value in tree.items() if key != "model"]
    tables = 0
    while level:
        part = level.pop()
        if isinstance(part, list):
            level += part
        if not isinstance(part, dict):
            continue
        level += part.values()
        # A search for some patterns never ends.
        if part.get("Regex", SPACES) != SPACES:
            raise ValueError(
                f"the pattern {str(part['Regex'])[:40]!r} is none of a known tokenizer"
            )
        # Replacements that lengthen a text, one after the other, fill any memory.
        if part.get("type") == "Replace":
            pattern = part.get("pattern")
            given = pattern.get("String") if isinstance(pattern, dict) else None
            longest = len(given) if isinstance(given, str) else 2
            if len(str(part.get("content", ""))) > longest:
                raise ValueError("a replacement is longer than what it replaces")
        if part.get("type") == "Prepend" and len(str(part.get("prepend", ""))) > 1:
            raise ValueError("it puts more than one sign before a text")
        if "precompiled_charsmap" in part:
            tables += 1
            if tables > 1 or len(str(part["precompiled_charsmap"])) > MAX_CHARSMAP:
                raise ValueError("it has more than one table of replacements, or a larger one")


@contextmanager
def _panics_told() -> Iterator[None]:
    """Raise what goes wrong in the library as `ValueError`."""
    try:
        yield
    except BaseException as error:
        # A panic of the library, which is written in Rust, is no `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(one_line(error)) from None
