"""`python -m dfkd.benchmarks.gpu`."""

import sys

from dfkd.benchmarks.gpu.command import main

if __name__ == "__main__":
    sys.exit(main())
