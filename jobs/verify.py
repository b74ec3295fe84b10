"""Check every shard, receipt and block of the index of each method's current version.

The same as `dfkd verify`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.verify import main

if __name__ == "__main__":
    sys.exit(main())
