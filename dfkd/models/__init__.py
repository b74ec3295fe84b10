"""The networks: teacher (open_clip), generator (VQGAN), student (torchvision or timm).

In: a section of the manifest and published weights. Out: modules in evaluation mode that map pixels
to embeddings, latents to pixels, and pixels to distances. `weights/` fetches, verifies and reads
their files. Begin with `teacher.py`, `generator.py` and `student.py`.
"""
