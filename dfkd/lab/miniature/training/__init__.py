"""The trainings of the bundled models, each of which resumes from its last checkpoint.

In: cached drawings and a section of the recipe. Out: networks, which
`dfkd.lab.miniature.pretraining` and `dfkd.lab.miniature.making` export. `teacher.py` comes first.
`tower.py` trains its image tower again, `generator.py` (the VQGAN) compares images by its features,
and `diffusion.py` works on the latents of the one and the hidden states of the other.
`classifier.py` needs none of them.
"""
