"""Make a few images of each class, and say whether the run is worth its time.

The same as `dfkd audit`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.audit import main

if __name__ == "__main__":
    sys.exit(main())
