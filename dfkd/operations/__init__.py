"""What keeps runs healthy: checks before the start, status, fetching, removal and regeneration.

In: a manifest, and what a run has left in storage. Out: refusals, plans, and data sets that stay
fresh. `preflight.py` refuses what cannot work; `regeneration.py` does the work of
jobs/regenerate.py, `garbage_collection.py` and `sweep.py` that of jobs/clean.py, and the package
`status` that of jobs/status.py. `drafting.py` writes a first manifest.
"""
