"""The results.json of a study, read back."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from synthjax import files
from synthjax.scaling.multiples import Efficiency

# Not in the JSON: comparisons of two arms draw from the cells of a study that is running.
_LEFT_OUT = {"cells"}


def read(path: files.Path) -> Efficiency:
  """The multiples of a finished study, for tables and figures.

  Args:
    path: results.json in the work folder of a run of recipe math_rl.

  Raises:
    DataError: no such file, or not the results of such a study.
  """
  stored = files.read_json(path)
  names = {field.name for field in dataclasses.fields(Efficiency)} - _LEFT_OUT
  if not isinstance(stored, Mapping) or not names <= stored.keys():
    raise files.DataError(
      f"{path}: expected the results.json of a study A, with {', '.join(sorted(names))}"
    )
  return _restored(Efficiency, {name: stored[name] for name in names})


def _restored(hint: Any, value: Any) -> Any:
  """`value` from JSON as the type `hint` says; a null stands for a number that does not exist."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if hint is float:
    return math.nan if value is None else float(value)
  if origin is types.UnionType:
    return None if value is None else _restored(arguments[0], value)
  if origin is tuple and arguments[-1] is Ellipsis:
    return tuple(_restored(arguments[0], part) for part in value)
  if origin is tuple:
    return tuple(_restored(part_hint, part) for part_hint, part in zip(arguments, value))
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    hints = typing.get_type_hints(hint)
    return hint(**{name: _restored(hints[name], part) for name, part in value.items()})
  return value
