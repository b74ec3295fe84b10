"""Studies: tables and figures of the paper, each from many runs that are compared.

In: a study.yaml with a base manifest, axes of named settings, and seeds. Out: results.json, a table
and a figure. A cell is one trained and scored student; it is made once, and studies share it. Begin
with `study.py`, which expands the file into cells, and `runner.py`, which makes them.
"""
