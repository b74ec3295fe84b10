"""All of Ray but the benchmarks': workers of synthesis, ranks of training, the pool between them.

In: a manifest. Out: published versions and students, made by actors that may die at any moment.
Begin with `synthesis.py` and `distillation.py`, which run the two stages; `pool.py` gives tasks to
workers, `rank.py` is one rank of training, `ray_internals.py` is all that is not public API.
"""
