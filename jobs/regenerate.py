"""Make the next version of the data set, and make it current only if its student is as good.

The same as `dfkd regenerate`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.regenerate import main

if __name__ == "__main__":
    sys.exit(main())
