"""Looks of drawings: some eighty ways to paint an icon, each with the word that tells it.

A ``Look`` (``look.py``) names an ink, a ground, a stroke, a material, an arrangement and a finish;
``painting.py`` turns drawings and looks into images of 64 px. Each kind of part has a file with one
function for each word. Start with ``look.py``.
"""
