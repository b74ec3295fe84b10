"""Write labels of other classes, which let an exported student of embeddings tell those apart.

The same as `dfkd labels`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.commands.labels import main

if __name__ == "__main__":
    sys.exit(main())
