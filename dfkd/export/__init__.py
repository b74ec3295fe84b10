"""Export of candidates, their figures, the answer what to ship, and a program that uses a folder.

In: finished students, image towers, and synthesised images that calibrate int8. Out: a folder
`candidates/{name}/` for each, and `candidates.json`. Begin with `candidates.py`, which calls
`folder.py` for a folder. `choice.py` finds the answer. `predict.py` reads a folder elsewhere; it
needs onnxruntime, numpy and Pillow, but no torch. `try_page.py` writes a page beside the model that
does the same in a browser.
"""
