"""Write report.html about a finished run, or comparison.html about two.

The same as `dfkd report`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
