"""Helpers that know nothing about distillation: YAML, JSON, images, logs, seeds, devices.

In: plain values, bytes and files, often from outside and therefore checked. Out: the same, checked.
All other packages may import this one, and it imports only `dfkd.errors`. Begin with `yaml.py`,
which turns a file into checked dataclasses, and `types.py`, which holds the checks that fields
share. `images.py` is also a part of an exported model and needs no torch.
"""
