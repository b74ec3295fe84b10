"""The manifest: what a YAML file may say, and what follows from it by counting.

In: a YAML file and overrides. Out: a frozen `Manifest`, its tasks (`plan.py`), and the fingerprint
that names whatever is made from it. No torch and no Ray, so that a bad manifest is refused at once.
Begin with `manifest.py`.
"""
