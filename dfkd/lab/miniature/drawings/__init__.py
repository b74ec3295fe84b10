"""The drawings that the miniature models learn from and are scored on: icons and clip art.

`icons.py` and `clipart.py` read the two sources: names, licences, and which drawings are held out.
`rendering.py` renders them once into a cache of pixels, and makes images of its rows. `nouns.py`
finds the names of things, and `sampling.py` chooses the drawings of a training batch.
`separation.py` finds held-out drawings that training has too. Start with `Cache` in `rendering.py`.
"""
