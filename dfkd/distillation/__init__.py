"""Images to a student that answers like the teacher.

In: batches of a published version and the teacher's distances to the class texts. Out: checkpoints
and an exported student. Begin with `distiller.py` (Eq 4), then `labels.py` (the targets) and
`student_store.py` (where students lie). `text_only.py` is the baseline that needs no image.
"""
