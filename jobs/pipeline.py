"""Class names in, answer out: synthesise, distil, evaluate, export all candidates, and report.

The same as `dfkd pipeline`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.pipeline import main

if __name__ == "__main__":
    sys.exit(main())
