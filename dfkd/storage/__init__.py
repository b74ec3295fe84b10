"""Objects under a root, on a disk or in a bucket, and the bookkeeping of a run in them.

In: a root (`runs/x`, or a bucket such as `s3://bucket/prefix`), keys and bytes. Out: a `Storage`
that reads, writes atomically and puts if absent. Leases, checkpoints and cost records are built on
it. Begin with `base.py` (the interface) and `local.py` (`open_storage`); `layout.py` names the
folders of a run.
"""
