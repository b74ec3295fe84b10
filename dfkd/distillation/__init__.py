"""Distillation: training a student on synthesised images to answer like the teacher.

In: batches of a published version and the teacher's distances to the class texts. Out: checkpoints
and a finished student. Begin with `distiller.py` (equations 4-5), then `labels.py` (targets) and
`student_store.py` (where students are stored). `text_only.py` is the baseline without images.
"""
