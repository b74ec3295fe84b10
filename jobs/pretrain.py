"""Train the miniature world's models from an icon package, score and export them.

The same as `dfkd pretrain`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.lab.commands.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
