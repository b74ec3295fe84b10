"""All use of Ray outside the benchmarks: synthesis workers, training ranks and the actor pool.

In: a manifest. Out: published versions and students, made by actors that may die at any moment.
Begin with `synthesis.py` and `distillation.py`, the drivers of the two stages. The pool of `actors`
gives tasks to those of `worker.py`, `rank.py` is one rank of training, and `ray_internals.py` holds
every use of a non-public API.
"""
