"""Class names to text embeddings: vanilla, mix, random and contrastive prompts.

In: a manifest and a teacher. Out: for each image a prompt, its pseudo-word and its unit text
embedding, as rows of prompts.parquet. Begin with `maker.py`; `contrastive.py` is Eqs 9 to 12.
"""
