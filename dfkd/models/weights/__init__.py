"""Published weights: their addresses, which `dfkd fetch` downloads, and their reading.

In: an entry of `artifacts.py` or a path. Out: a file in the cache and a state dict, read without
unpickling code. Begin with `reading.py`.
"""
