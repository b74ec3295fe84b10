"""A package outside dfkd, which dfkd does not know: prompts in capitals, and images of a grid."""
