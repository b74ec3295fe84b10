"""Helpers that know nothing of distillation: YAML, JSON, Parquet, images, logs, seeds, devices.

In: plain values, bytes and files. Out: the same, checked. Everything above may import this package,
and it imports nothing but `dfkd.errors`. Begin with `yaml.py`, which turns a file into checked
dataclasses, and `types.py`, which holds the checks that fields share.
"""
