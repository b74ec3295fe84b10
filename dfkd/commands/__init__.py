"""What the jobs share at the command line: options, exit codes, and the dry run.

In: the words of a command line. Out: an exit code. Begin with `command_line.py`.
"""
