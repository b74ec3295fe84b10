"""Captions: texts of one's own for each class, by any language model or person.

The file is JSON Lines. A line with a class is a text of this class; one without serves every class,
and `{class}` stands where a class goes:

    {"class": "crane", "text": "a crane on one leg in shallow water, seen from the side"}
    {"text": "a {class} lying on its side on a wooden floor, seen from above"}
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dfkd.config.hashing import derive_seed
from dfkd.config.manifest import Manifest
from dfkd.config.plan import PromptRow, root_seed
from dfkd.errors import SECRET_PATTERN, ManifestError, conceal, shorten
from dfkd.models.teacher import Teacher
from dfkd.prompts.method import PromptBatch, PromptMethod
from dfkd.prompts.settings import CAPTIONS_FILE, Captions
from dfkd.utils.strict_json import parse

MAX_BYTES = 64 << 20
"""Maximal size of a file of captions."""
MAX_TEXTS = 1 << 20
"""Maximal number of texts, where one for every class counts once a class."""
MAX_LETTERS = 2000
"""Maximal length of a text; no teacher reads more than a few hundred letters."""
NAMED = 12
"""Number of classes whose counts are told."""


def read_captions(path: Path, manifest: Manifest) -> list[dict[str, int]]:
    """The texts of each class, in the order of the labels and of the file, with their lines.

    Raises:
        ManifestError: the file breaks a rule; the text names the line.
    """

    def refused(line: int, rule: str, value: object, remedy: str) -> ManifestError:
        return ManifestError(CAPTIONS_FILE, f"{path}:{line}: {rule}", value, remedy)

    if (size := path.stat().st_size) > MAX_BYTES:
        raise ManifestError(CAPTIONS_FILE, f"at most {MAX_BYTES} bytes", size, "check the path")
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    positions = {name: index for index, name in enumerate(manifest.classes)}
    meanings = manifest.meanings
    found: list[dict[str, int]] = [{} for _ in meanings]
    seen: dict[str, int] = {}
    total = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = parse(line.decode())
        except UnicodeDecodeError:
            raise refused(number, "must be UTF-8", line[:40], "save the file as UTF-8") from None
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            example = 'write {"class": "dog", "text": "a dog asleep"}, and nothing but such lines'
            start = line[:60].decode(errors="replace")
            raise refused(number, "must be a JSON object on one line", start, example)
        if unknown := sorted(entry.keys() - {"class", "text"}):
            raise refused(number, "has only the keys class and text", unknown[0], "remove it")
        text, name = entry.get("text"), entry.get("class")
        if not isinstance(text, str) or not text.strip():
            raise refused(number, "text must not be empty", text, "write a text or remove the line")
        if "class" in entry and not (isinstance(name, str) and name in positions):
            raise refused(number, "class must be one of classes", name, "correct or remove it")
        if len(text) > MAX_LETTERS or not text.isprintable():
            rule = f"text must be printable and have at most {MAX_LETTERS} letters"
            raise refused(number, rule, text, "change it")
        if SECRET_PATTERN.search(text):
            raise refused(number, "text must not hold credentials", conceal(text), "remove them")
        slots = 0 if "class" in entry else 1
        if text.count("{class}") != slots or set("{}") & set(text.replace("{class}", "")):
            rule = "text must have {class} once without a class, and no braces with one"
            raise refused(number, rule, text, "name the class, or write {class} in its place")
        served = range(len(meanings)) if name is None else [positions[name]]
        total += len(served)
        if total > MAX_TEXTS:
            raise refused(number, f"at most {MAX_TEXTS} texts", total, "remove some")
        for index in served:
            filled = text.strip().replace("{class}", meanings[index])
            # The teacher reads lower case, and any space as one.
            read = " ".join(filled.casefold().split())
            if read in seen:
                rule = f"text must differ from that of line {seen[read]}, also in another class"
                raise refused(number, rule, filled, "change or remove one of them")
            seen[read] = number
            found[index][filled] = number
    for name, texts in zip(manifest.classes, found, strict=True):
        if not texts:
            rule = f"{path}: must have a text of every class"
            raise ManifestError(CAPTIONS_FILE, rule, f"none of {name}", "add some of this class")
    return found


class CaptionPrompts(PromptMethod):
    """The captions of a class in random order, then all of them in another one, and so on."""

    def __init__(self, manifest: Manifest, teacher: Teacher, settings: Captions) -> None:
        super().__init__(manifest, teacher)
        self.settings = settings

    @functools.cached_property
    def captions(self) -> list[dict[str, int]]:
        """The texts of each class with their lines; read where prompts are made alone."""
        return read_captions(self.settings.files()[CAPTIONS_FILE], self.manifest)

    def check(self) -> None:
        """Raise `ManifestError` if the file breaks a rule, or the teacher cannot read a text."""
        marks = set(self.teacher.tokenizer.all_special_ids)
        for texts in self.captions:
            for text, line in texts.items():
                tokens = self.teacher.content_tokens(text)
                if not tokens or marks & set(tokens):
                    rule = f"{self.settings.file}:{line}: the teacher must be able to read the text"
                    raise ManifestError(CAPTIONS_FILE, rule, text, "write it in words")

    def notes(self) -> list[str]:
        """How many texts each class has, and what is cut of those that exceed the context."""
        counts = sorted(map(len, self.captions))
        images, total = self.manifest.synthesis.images_per_class, sum(counts)
        each = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
        note = f"{CAPTIONS_FILE}: {total} texts, {each} a class for {images} images"
        if counts[0] != counts[-1]:
            pairs = zip(self.manifest.classes, map(len, self.captions), strict=True)
            fewest = sorted(pairs, key=lambda pair: pair[1])
            told = ", ".join(f"{name} {count}" for name, count in fewest[:NAMED])
            note += f" ({told}{', ...' * (len(fewest) > NAMED)})"
        limit = self.teacher.content_length
        cut = [
            (tokens, line)
            for texts in self.captions
            for text, line in texts.items()
            if len(tokens := self.teacher.content_tokens(text)) > limit
        ]
        if not cut:
            return [note]
        tokens, line = max(cut, key=lambda each: len(each[0]))
        lost = shorten(self.teacher.tokenizer.decode(tokens[limit:]))
        return [
            note,
            f"{CAPTIONS_FILE}: {len(cut)} of {total} texts are longer than the {limit} tokens that "
            f"the teacher reads, and are cut there; the longest, {self.settings.file}:{line}, has "
            f"{len(tokens)} and loses {lost!r}",
        ]

    def draw(self, rows: Sequence[PromptRow], batch_seed: int) -> PromptBatch:
        """See `PromptMethod.draw`."""
        texts = []
        for row in rows:
            own = list(self.captions[row.class_index])
            # Each round uses every text of the class once, so that all are used evenly.
            turn, position = divmod(row.index, len(own))
            seed = derive_seed("captions", *root_seed(self.manifest), row.name, turn)
            order = np.random.default_rng(seed).permutation(len(own))
            texts.append(own[order[position]])
        return PromptBatch(texts, self.teacher.encode_text(texts))
