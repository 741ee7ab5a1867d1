"""The command line, with every training sequence that is read written to a file.

SYNTHJAX_RECORD names the file.
"""

import json
import os
import sys

from synthjax import __main__
from synthjax.data import loader

_read = loader.PackedDocuments.read


def _recorded(self, indices):
  if self.seed is not None:  # held-out sequences have no seed
    with open(os.environ["SYNTHJAX_RECORD"], "a") as f:
      for index in indices:
        f.write(json.dumps([index, self.ids(index)]) + "\n")
  return _read(self, indices)


loader.PackedDocuments.read = _recorded
sys.exit(__main__.main())
