"""Synthesise a manifest's images: prompts, shards, and one published version a method.

The same as `dfkd synthesize`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.synthesize import main

if __name__ == "__main__":
    sys.exit(main())
