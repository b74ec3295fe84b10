"""Fetch the published weights that a manifest names into its cache, and verify them.

The same as `dfkd fetch`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.fetch import main

if __name__ == "__main__":
    sys.exit(main())
