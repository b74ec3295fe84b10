"""The manifest: its keys, and the tasks and seeds that follow from them.

In: a YAML file and overrides. Out: a frozen `Manifest`, its tasks and seeds (`plan.py`), and the
fingerprint that names all results (`identity.py`). The package imports neither torch nor Ray, so
a bad manifest fails at once. Begin with `manifest.py`; its sections are in `synthesis.py` and
`distillation.py`, and what other packages may add to them in `plugins.py`.
"""
