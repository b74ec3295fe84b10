"""Turn class names into text embeddings: vanilla, mix, random and contrastive prompts.

Input: a manifest and a teacher. Output: for each image a prompt, its pseudo-word and its unit text
embedding, as rows of a Parquet table. Begin with `maker.py`; `contrastive.py` implements Eq 12.
"""
