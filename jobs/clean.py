"""Remove what nobody needs any more: old versions with their students, and abandoned work.

The same as `dfkd clean`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.clean import main

if __name__ == "__main__":
    sys.exit(main())
