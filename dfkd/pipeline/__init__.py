"""What the jobs share, between the command line and the stages.

In: the words of a command line. Out: exit codes, plans, and the work of the jobs that keep a data
set fresh. Begin with `command_line.py`; `preflight.py` refuses what cannot work, `regeneration.py`
and `garbage_collection.py` are behind the jobs of those names.
"""
