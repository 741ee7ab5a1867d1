"""What the repository ships in data/: worked examples, example data, the world's base policy.

A wheel holds them inside the package.
"""

import pathlib

from synthjax import files

_PACKAGE = pathlib.Path(__file__).absolute().parent
_PLACES = (
  _PACKAGE / "shipped_data",
  _PACKAGE.parent / "data",
)  # of a wheel (see setup.py), of a checkout


def folder(name: str) -> pathlib.Path:
  """The folder `data/NAME`.

  Raises:
    DataError: neither the package nor the repository around it has it.
  """
  for place in _PLACES:
    if (place / name).is_dir():
      return place / name
  places = " or ".join(map(str, _PLACES))
  raise files.DataError(
    f"{name}: expected in {places}, and is in neither; install synthjax again, or run it from its "
    "repository"
  )
