"""Published weights: their addresses, their download and verification, and their reading.

In: an entry of `artifacts.py` or a path. Out: a verified file in the cache and a state dict, read
without unpickling code. Begin with `reading.py`; `download.py` is behind jobs/fetch.py.
"""
