"""Where a run stands, read from its storage alone while jobs may be at work.

In: a root and perhaps its manifest. Out: a `RunStatus`: what is done, running and failed, how fast,
and which command comes next. Begin with `run.py` (`read_status`); `text.py` shows it on a terminal.
Objects are listed and hardly read, nothing is written, and neither torch nor Ray is imported.
"""
