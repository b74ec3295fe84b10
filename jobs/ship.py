"""Copy the most accurate candidate within your limits to shipped/, or say what excludes which.

The same as `dfkd ship`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.ship import main

if __name__ == "__main__":
    sys.exit(main())
