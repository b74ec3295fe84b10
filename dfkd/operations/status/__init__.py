"""Where a run stands, read from its storage alone while jobs may be at work.

In: a root and perhaps its manifest. Out: a `RunStatus`: what is done, running and failed, how fast,
and which command comes next. Begin with `run.py` (`read_status`); `text.py` shows it on a terminal.
Objects are listed and hardly read. Nothing is written, and Ray is not imported, nor torch unless
`distillation.texts` is `styles`.
"""
