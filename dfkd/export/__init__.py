"""Export of a student: ONNX files, a model card, and a program that uses them.

In: a finished student, its teacher, and synthesised images that calibrate int8. Out: the folder
`student/` with `model.onnx`, `model.int8.onnx`, a card and measured figures. Begin with
`take_home.py`, which calls `onnx_graphs.py` and `model_card.py`. `predict.py` reads the folder
elsewhere; it needs onnxruntime, numpy and Pillow, but no torch. `try_page.py` writes a page beside
the model that does the same in a browser.
"""
