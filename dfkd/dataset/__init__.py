"""Synthetic data sets: WebDataset shards, published as versions, read as batches.

In: samples of finished tasks. Out: shards with receipts, a version whose index and manifest vouch
for every sample, and a shuffled stream of batches. Begin with `versions.py` (begin, commit,
publish, verify), then `shards.py` (the format) and `loader.py` (training's reader).
"""
