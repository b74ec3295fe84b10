"""Fine-tune the student, library weights and random ones on few labelled images of each domain.

The same as `dfkd fewshot`, for `ray job submit` and for a checkout.
"""

import sys

from dfkd.lab.commands.fewshot import main

if __name__ == "__main__":
    sys.exit(main())
