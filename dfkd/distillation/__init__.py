"""Distillation: training a student on synthesised images to answer like the teacher.

In: batches of a published version and the teacher's distances to the class texts. Out: the trained
student in its folder (`student_store.py`). Begin with `distiller.py` (one training step,
equations 4-5), then `objective.py` (the loss), `labels.py` (the targets) and `augmentation.py` (the
views). `embedding.py` serves students whose classes can be replaced. `dfkd.cluster.rank` is the
loop around the steps; `data_parallel.py` has what ranks share, and `hang_watch.py` ends a rank that
makes no more steps. `text_only.py` is a baseline that needs no images.
"""
