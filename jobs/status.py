"""Where a run stands: what is done, running and failed, how fast, and the command to run next.

The same as `dfkd status`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.status import main

if __name__ == "__main__":
    sys.exit(main())
