"""All use of Ray outside the benchmarks: workers that make images, and ranks that train.

In: a manifest. Out: published versions and students, made by processes that may die at any moment.
Begin with `making.py` and `students.py`, the drivers of the two stages. `engine.py` gives
their tasks to actors, and failed ones again. `worker.py` makes prompts and images, `rank.py` is
one rank of training, and `ray_internals.py` holds every use of a non-public API.
"""
