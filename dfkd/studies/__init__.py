"""Tables and figures of the paper: many runs, compared.

In: a study.yaml with rows and seeds. Out: results.json, a table and a figure. Begin with `study.py`
and `runner.py`; a cell is one trained and scored student, and studies share cells.
"""
