"""Class names in, student out: synthesise, distil and evaluate each prompt method, and report.

The same as `dfkd pipeline`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.pipeline import main

if __name__ == "__main__":
    sys.exit(main())
