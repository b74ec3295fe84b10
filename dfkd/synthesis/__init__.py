"""Turn prompts into labelled images: optimise the latents of a generator, or let it sample them.

In: the prompts of a unit, teacher and generator. Out: shards of images, each with the teacher's
distances to the class prompts and its embedding. Begin with `latents.py` (Eqs 1-3), the image
source of this package, and `shard_maker.py`, which makes the shards of what a source gives
(`image_source.py` is the interface); `views.py` has the augmented views.
"""
