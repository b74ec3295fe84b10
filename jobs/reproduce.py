"""Make a table or figure of the paper, from a study: --list names them all.

The same as `dfkd reproduce`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.lab.commands.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
