"""Export of a student: ONNX files, a model card, and a program that uses them.

In: a finished student. Out: a folder with `student.onnx`, an int8 version and a card. Begin with
`take_home.py`; `predict.py` needs only onnxruntime, numpy and Pillow.
"""
