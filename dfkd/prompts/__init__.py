"""Turn class names into text embeddings: vanilla, mix, random and contrastive prompts.

In: a manifest and a teacher. Out: for each image a prompt, its pseudo-word and its unit text
embedding, as rows of a table (`maker.SCHEMA`), part after part. Begin with `maker.py`, which draws
the four methods (Eqs 6-12); `pseudo_words.py` encodes sentences with a vector in place of a word
(Eq 7), and `contrastive.py` optimises such vectors (Eq 12).
"""
