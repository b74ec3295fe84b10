"""The frozen generators of images: a family of kinds behind one interface.

In: the manifest's section `generator`, seeds, and of some kinds hidden states of the teacher's text
tower. Out: latents, and pixels that are differentiable in them. Begin with `generator.py`, the
interface. `kinds.py` is the table of kinds: `vqgan.py`, and `diffusion.py`, whose files
`diffusers_folder.py` reads and whose texts `text_tower.py` gives.
"""
