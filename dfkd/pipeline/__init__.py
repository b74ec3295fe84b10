"""Code shared by several jobs: the command line, checks before the start, and long procedures.

In: the words of a command line. Out: exit codes, plans, and the work of the jobs that keep a data
set fresh. Begin with `command_line.py`; `preflight.py` refuses what cannot work; `regeneration.py`
does the work of jobs/regenerate.py, `garbage_collection.py` and `sweep.py` that of jobs/clean.py,
and the package `status` that of jobs/status.py.
"""
