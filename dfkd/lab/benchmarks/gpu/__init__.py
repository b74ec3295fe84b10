"""What a GPU does with the real networks: one command for a bare machine without a network.

`python -m dfkd.lab.benchmarks.gpu --out FOLDER` needs no Ray and no file of weights. In: how much
is measured (`sizes.py`). Out: `gpu.json` and `gpu.md` in the folder, written anew after each row.
Begin with `rows.py`, which lists the rows in their order. `record.py` runs them within the time
limit; `kit.py` has the networks; `checks.py`, `synthesis.py`, `diffusion.py` and `training.py`
measure.
"""
