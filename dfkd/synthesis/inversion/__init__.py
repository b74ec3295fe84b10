"""The conventional methods that the paper compares itself with (section 4.4, Table 5).

They invert the teacher without a pre-trained generator: DeepInversion optimises pixels, CMI trains
a new generator for each batch, DFAD and PRE-DFKD one generator against a student of their own. What
they make goes the way of all images: shards, labels, distillation and evaluation are the same.

Their images are not independent: those of a batch share batch-norm statistics, those of a game a
generator. So the unit of work is a part, shard p of every class. A part has every class because
these methods need that: batch-norm statistics are those of a mixture of classes, and an
unconditional generator makes all of them.

DeepInversion makes each part by itself, side by side on as many workers as there are. The other
three are chained: CMI's bank and student, and the networks and students of DFAD and PRE-DFKD, go
through the whole run, as they do in the publications. Their parts are made in order, by one worker
at a time, and between two parts storage keeps their state (`dfkd.dataset.chain`), so that a killed
run costs one part. They are as fast as one worker is, whatever the cluster.

All promises about restarts and order hold for parts as they do elsewhere for images: the same
manifest gives the same part. `synthesis.shard_size` is hence a setting of these methods: it says
where batches are cut and how much a killed run loses. What is not promised here: that an image
keeps its bytes when a class is added.

What else differs from the published code is said in each method's module.
"""
