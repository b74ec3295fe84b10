"""Few-shot learning (section 4.3, Fig. 5): how well a student starts on a few labelled images.

In: evaluation data and finished students. Out: `fewshot/` under the run's root. Begin with
`run.py`.
"""
