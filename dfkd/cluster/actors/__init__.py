"""A pool of Ray actors that may die, hang, or lose their node at any moment.

In: a class of actors, their resources, and tasks. Out: results in any order, and the tasks that
failed at every attempt. Begin with `pool.py`, which gives tasks to actors and retries them;
`group.py` starts and ends actors as nodes come and go, and `failures.py` counts failed attempts.
"""
