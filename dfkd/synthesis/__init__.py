"""Text embeddings to labelled images: latents of the generator are optimised for the teacher.

In: prompts, teacher, generator. Out: a shard of images with distances and embeddings. Begin with
`latents.py` (Eqs 2 and 3) and `shard_maker.py` (one task); `inversion/` holds the conventional
methods that the paper compares with.
"""
