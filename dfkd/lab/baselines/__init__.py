"""The conventional methods that the paper compares with (section 4.4, Table 5), as image sources.

They invert the teacher without a pre-trained generator: DeepInversion optimises pixels, CMI trains
a new generator for each batch, and DFAD and PRE-DFKD train one generator against a student of their
own. Shards, labels, distillation and evaluation are the same as for all other images.

Their images are not independent: the images of a batch share batch-norm statistics, and those of an
adversarial run share a generator. So the unit of work is a part: shard p of every class. A part
holds every class, because batch-norm statistics are those of a mixture of classes and because an
unconditional generator makes all classes.

DeepInversion makes parts independently, in parallel on all workers. The other three methods are
chained: as published, CMI's bank and student, and the networks and students of DFAD and PRE-DFKD,
are trained over the whole run. Their parts are made in order, by one worker at a time, so a larger
cluster does not make them faster. Storage keeps the state between two parts (`source.py`), so a
killed run loses one part at most.

The promises about restarts and order hold for parts as they hold for images elsewhere: the same
manifest gives the same part. `synthesis.shard_size` is therefore a setting of these methods: it
determines the batches and how much work a killed run loses. It is not promised that an image keeps
its bytes when a class is added.

The docstring of each method's module lists the other differences to the published code.
"""
