"""Looks of drawings: some eighty ways to paint a drawing, each with the word that captions use.

A `Look` (`look.py`) combines colours, from `colours.py`, with up to five parts. Each kind of part
has a module, with one function for each of its words:

    stroke       strokes.py        how the ink of a drawing is drawn       coverage [n, 1, 64, 64]
    arrangement  arrangements.py   where the drawing stands                RGBA [n, 4, 64, 64]
    material     materials.py      what the drawing is made of             RGBA [n, 4, 64, 64]
    ground       grounds.py        what the drawing stands on              RGB [n, 3, 64, 64]
    finish       finishes.py       what happens to the whole image         RGB [n, 3, 64, 64]

`painting.py` applies them in this order to a batch; `fields.py` has the noise, patterns and filters
that they use. `look.py` draws the looks of training images, `domains.py` those of the evaluation
set. Start with `look.py`.
"""
