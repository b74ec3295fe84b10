"""Score the teacher zero-shot, a text-only classifier and the students of the manifest.

The same as `dfkd evaluate`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
