"""Measurements of each part, compared with limits of this machine and with plain loops.

In: a manifest, and an `Effort` that says how much is measured. Out: `benchmarks/NAME.json` and
`benchmarks/table.md` under the run's root. Begin with `suite.py`, which runs the benchmarks, then
`measure.py`: timing in turns and figures. `reference.py` has limits and plain loops, `stand_in.py`
versions that are made without models, `memory.py` the memory of processes over time. Each module of
`BENCHMARKS` has a function `measure`.
"""

BENCHMARKS = ("synthesis", "prompts", "streaming", "distillation", "scale", "towers")
