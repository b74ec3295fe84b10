"""The laboratory's commands: few-shot, studies, benchmarks, and the miniature's training.

In: the words of a command line. Out: an exit code. `dfkd.commands.main` finds them by their names.
"""
