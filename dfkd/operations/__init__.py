"""What keeps runs healthy: checks before the start, status, fetching, removal and regeneration.

In: a manifest, and what a run has left in storage. Out: refusals, plans, and data sets that stay
fresh. `preflight.py` refuses what cannot work; `regeneration.py` does the work of
dfkd regenerate, `garbage_collection.py` and `sweep.py` that of dfkd clean, and the package
`status` that of dfkd status. `drafting.py` writes a first manifest.
"""
