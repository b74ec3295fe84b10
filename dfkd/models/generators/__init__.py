"""The frozen generators of images: a family of kinds behind one interface.

In: settings (`settings.py`), seeds, and of some kinds hidden states of the teacher's text tower.
Out: latents, and pixels that are differentiable in them. Begin with `generator.py`, the interface.
The kinds of this package are `vqgan.py`, and `diffusion.py`, whose files `diffusers_folder.py`
reads and whose texts `text_tower.py` gives.
"""
