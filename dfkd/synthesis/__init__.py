"""Turn text embeddings into labelled images by optimising the latents of a generator.

Input: prompts, teacher, generator. Output: a shard of images with distances and embeddings. Begin
with `latents.py` (Eqs 2 and 3) and `shard_maker.py` (one task); `inversion/` holds the conventional
methods that the paper compares with.
"""
