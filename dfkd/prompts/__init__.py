"""Turn class names into text embeddings, by a method that the manifest names.

In: a manifest and a teacher. Out: for each image a prompt, its pseudo-word and its unit text
embedding, as rows of a table (`maker.SCHEMA`), part after part. Begin with `maker.py`, then
`method.py`, the base of all methods and the vanilla one; `mix.py` (Eq 6), `random.py` (Eqs 8-11)
and `contrastive.py` (Eq 12) are the others, with their keys in `settings.py`. `pseudo_words.py`
encodes sentences with a vector in place of a word (Eq 7).
"""
