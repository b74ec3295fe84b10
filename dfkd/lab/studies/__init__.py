"""Tables and figures of the paper, each from many runs that are compared.

In: a study.yaml with rows and seeds. Out: results.json, a table and a figure. Begin with `study.py`
and `runner.py`. A cell is one trained and scored student; studies share cells.
"""
