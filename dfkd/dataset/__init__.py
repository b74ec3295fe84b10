"""Synthetic data sets: WebDataset shards, published as versions, read as batches.

Input: samples of finished tasks. Output: shards with receipts, a version whose index and facts
hold the hash of every sample, and a shuffled stream of batches. Begin with `versions.py` (begin,
commit, publish), then read `shards.py` (the format), `published.py` (what readers open) and
`loader.py` (the stream of training).
"""
