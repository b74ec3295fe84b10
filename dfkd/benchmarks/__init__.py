"""What things cost: each module times one part beside a limit or a plain program.

In: a manifest and an effort. Out: figures in benchmarks/NAME.json. Begin with `measure.py`.
"""
