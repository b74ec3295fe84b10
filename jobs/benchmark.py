"""Measure what things cost on this machine, and keep the figures as benchmarks/NAME.json.

The same as `dfkd benchmark`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.lab.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
