"""The command line, with every training row that is read written down: SYNTHJAX_RECORD names the file."""

import json
import os
import sys

from synthjax import __main__
from synthjax.data import loader

_read = loader.Rows.read


def _recorded(self, indices):
  if self.seed is not None:  # held-out rows have no seed
    with open(os.environ["SYNTHJAX_RECORD"], "a") as f:
      f.writelines(json.dumps([i, self.ids(i)]) + "\n" for i in indices)
  return _read(self, indices)


loader.Rows.read = _recorded
sys.exit(__main__.main())
