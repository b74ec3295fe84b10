"""The networks: teacher (open_clip), generators (VQGAN, diffusion), student (torchvision or timm).

In: a section of the manifest and published weights. Out: modules that map pixels and texts to
embeddings (teacher), latents to pixels (generator), and pixels to distances (student). Teacher and
generator are frozen. `weights/` fetches, verifies and reads their files. Begin with `labeller.py`,
`generators/` and `student.py`.
"""
