"""The conventional methods that the paper compares itself with (section 4.4, Table 5).

They invert the teacher without a pre-trained generator: DeepInversion optimises pixels, CMI trains
a new generator for each batch, DFAD and PRE-DFKD one generator against a student of their own. What
they make goes the way of all images: shards, labels, distillation and evaluation are the same.

Their images are not independent: those of a batch share batch-norm statistics, those of a run a
generator. So the unit of work is a part, shard p of every class: one run from a seed of its own,
with its own networks, memory and student, makes the part, and nothing passes from part to part.
All promises about restarts and order hold for parts as they do elsewhere for images: the same
manifest gives the same part. A part has every class because these methods need that: batch-norm
statistics are those of a mixture of classes, and an unconditional generator makes all of them.
`synthesis.shard_size` is hence a setting of the method: how many images a class one run makes, and
a worker holds. What is not promised here: that an image keeps its bytes when a class is added.
"""
