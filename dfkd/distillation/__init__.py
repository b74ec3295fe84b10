"""Distillation: training a student on synthesised images to answer like the teacher.

In: batches of a published version and the teacher's distances to the class texts. Out: the trained
student in its folder (`student_store.py`). Begin with `distiller.py` (one training step), then
`objective.py` (the loss, equation 5), `labels.py` (the targets, equation 4) and `augmentation.py`
(the views). `embedding.py` serves students whose classes can be replaced. `dfkd.cluster.rank` is
the loop around the steps; `data_parallel.py` has what ranks share, and `hang_watch.py` ends a rank
that makes no more steps. `text_only.py` is a baseline that needs no images.
"""
