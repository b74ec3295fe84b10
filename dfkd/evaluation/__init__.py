"""Evaluation: accuracy on domain-generalisation data.

In: a folder of labelled images in a known layout, a teacher and students. Out: results.json with an
accuracy for each model and domain. Begin with `scoring.py`; `data.py` and `layouts.py` find the
images.
"""
