"""Distil a student from the current version of each prompt method, one for each seed.

The same as `dfkd distill`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.distill import main

if __name__ == "__main__":
    sys.exit(main())
