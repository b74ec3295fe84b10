"""The laboratory: rival methods, experiments and measurements, which use the core from outside.

Nothing in the core imports it. `baselines` are the conventional methods that the paper compares,
`few_shot` fine-tunes on a few real images, `studies` repeat the paper's tables, `benchmarks`
measure each part, and `miniature` is the recipe of the bundled models. `charts.py` draws results.
"""
