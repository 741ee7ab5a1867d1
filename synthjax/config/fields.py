"""Fields of the experiment's dataclasses, with their types and ranges.

`beta2: Annotated[float, from_to(0, 1)] = 0.95  # decay of the second moment` says type, range,
default and meaning once. The value is checked whether a config or Python code builds the dataclass.
"""

import dataclasses
import difflib
import functools
import math
import numbers
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

from synthjax.errors import ConfigError

T = TypeVar("T")

# Former names of keys, so that an older config is told the new one.
RENAMED = {"row_length": "seq_len", "guards": "thresholds", "wrong": "incorrect"}


class FieldError(ConfigError):
  """One field's value is not allowed."""

  def __init__(self, owner: str, name: str, value: Any, allowed: str):
    self.name, self.value, self.allowed = name, value, allowed
    super().__init__(f"{owner}.{name} is {_shown(value)}; expected {allowed}")


@dataclasses.dataclass(frozen=True)
class Limit:
  """What a value must be besides its type."""

  text: str  # continues a sentence after "expected"
  allows: Callable[[Any], bool]


def _number(value: float) -> str:
  if float(value).is_integer():
    return str(int(value))
  return str(value)


def at_least(low: float, or_else: float | None = None) -> Limit:
  """`low` or more, or the one other value that has a meaning of its own."""
  text = f"at least {_number(low)}"
  if or_else is not None:
    text += f", or {_number(or_else)}"
  return Limit(text, lambda value: value >= low or value == or_else)


def above(low: float) -> Limit:
  return Limit(f"above {_number(low)}", lambda value: value > low)


def from_to(low: float, high: float) -> Limit:
  """Both ends are allowed."""
  return Limit(f"{_number(low)} to {_number(high)}", lambda value: low <= value <= high)


def from_to_below(low: float, high: float) -> Limit:
  """`low` is allowed and `high` is not."""
  return Limit(f"{_number(low)} to below {_number(high)}", lambda value: low <= value < high)


def multiple_of(factor: int) -> Limit:
  return Limit(f"a multiple of {factor}", lambda value: value % factor == 0)


def not_empty() -> Limit:
  return Limit("not empty", lambda value: len(value) > 0)


def distinct() -> Limit:
  return Limit("each of them once", lambda value: len(set(value)) == len(value))


def of_form(pattern: str, text: str) -> Limit:
  """Text that matches `pattern` from end to end, described as `text`."""
  return Limit(text, lambda value: re.fullmatch(pattern, value) is not None)


PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]
PositiveFloat = Annotated[float, above(0)]
NonNegativeFloat = Annotated[float, at_least(0)]
Share = Annotated[float, from_to(0, 1)]


class Checked:
  """Base of the dataclasses that check their fields' types and ranges, however they are built.

  A subclass with relations between its fields extends `__post_init__` and states them by `require`.
  """

  def __post_init__(self) -> None:
    for name, value in checked(self).items():
      object.__setattr__(self, name, value)

  def require(self, condition: bool, name: str, allowed: str) -> None:
    """Raises FieldError, which says what the field `name` may be, unless `condition` holds."""
    if not condition:
      raise FieldError(type(self).__name__, name, getattr(self, name), allowed)


def checked(instance: Any) -> dict[str, Any]:
  """Field -> value, with integers in fields of floats converted and lists made tuples.

  Raises:
    FieldError: a value has another type than its field, is not finite, or is out of its range.
  """
  path = type(instance).__name__
  values = {}
  for name, hint in hints(type(instance)).items():
    values[name] = cast(getattr(instance, name), hint, path, name)
  return values


def hints(cls: Any) -> dict[str, Any]:
  """Field -> annotation of a dataclass, with its limits."""
  return _hints(cls)


@functools.cache
def _hints(cls) -> dict[str, Any]:
  annotations = typing.get_type_hints(cls, include_extras=True)
  return {field.name: annotations[field.name] for field in dataclasses.fields(cls)}


def build(cls: type[T], values: Any, path: str, defaults: T | None = None) -> T:
  """An instance of the dataclass `cls` from a mapping.

  Args:
    cls: the dataclass.
    values: by field; a group is a mapping.
    path: what `values` are called in errors.
    defaults: what missing keys take, so that a group that is given in part keeps the rest of the
      defaults of the field it stands in; None: the defaults of `cls`.

  Raises:
    ConfigError: an unknown key, or a value that its field does not allow.
  """
  if not isinstance(values, Mapping):
    keys = ", ".join(hints(cls))
    raise ConfigError(f"{path} is {_shown(values)}; expected a group with the keys {keys}")
  check_keys(values, hints(cls), path)
  annotations = hints(cls)
  arguments = {}
  for key, value in values.items():
    hint = annotations[key]
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
      inner = getattr(cls if defaults is None else defaults, key, None)
      arguments[key] = build(typing.cast(type, hint), value, f"{path}.{key}", inner)
    else:
      arguments[key] = cast(value, hint, path, key)
  try:
    if defaults is not None:
      return dataclasses.replace(defaults, **arguments)  # type: ignore[type-var]
    return cls(**arguments)
  except FieldError as e:
    raise FieldError(path, e.name, e.value, e.allowed) from e


def check_keys(values: Mapping[str, Any], keys: Iterable[str], path: str) -> None:
  """Raises ConfigError for a key that is none of `keys`, with the nearest of them."""
  keys = list(keys)
  group = path.removeprefix("config").removeprefix(".")
  for key, value in values.items():
    if key in keys:
      continue
    if RENAMED.get(key) in keys:
      raise ConfigError(f"{path}.{key}: this key is now called {path}.{RENAMED[key]}")
    raise ConfigError(
      f"{path}.{key}: unknown key (value {value!r}){nearest(key, keys)}; "
      f"known here: {', '.join(keys)}; what they mean: "
      f"synthjax config --explain {group}"
    )


def nearest(name: str, names: Iterable[str]) -> str:
  """The end of a sentence about an unknown name: the known ones that it may stand for."""
  names = list(names)
  # `path` may stand for `train_path` or `test_path`, and either of them for `path`.
  close = [known for known in names if known in name.split("_") or name in known.split("_")]
  close = close or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
  if not close:
    return ""
  return f"; did you mean {' or '.join(map(repr, close))}?"


def cast(value: Any, hint: Any, path: str, name: str) -> Any:
  """`value` as a field `path.name` annotated with `hint` holds it.

  Raises:
    ConfigError: the field does not allow it.
  """
  kind = typing.get_origin(hint)
  if kind is Annotated:
    value = cast(value, hint.__origin__, path, name)
    for limit in hint.__metadata__:
      if not limit.allows(value):
        raise FieldError(path, name, value, allowed(hint))
    return value
  if dataclasses.is_dataclass(hint):
    return _group(value, hint, f"{path}.{name}")
  if kind is typing.Literal:
    choices = typing.get_args(hint)
    if value not in choices:
      raise FieldError(path, name, value, allowed(hint) + nearest(str(value), choices))
    return value
  if kind is tuple:
    return _elements(value, hint, path, name)
  return _plain(value, hint, path, name)


def allowed(hint: Any) -> str:
  """What a field with this annotation takes, in words."""
  kind = typing.get_origin(hint)
  if kind is Annotated:
    limits = [limit.text for limit in hint.__metadata__]
    return ", ".join([allowed(hint.__origin__), *limits])
  if kind is typing.Literal:
    return f"one of {', '.join(typing.get_args(hint))}"
  if kind is tuple:
    return f"tuple of {allowed(typing.get_args(hint)[0])}"
  if dataclasses.is_dataclass(hint):
    return f"group with the keys {', '.join(hints(typing.cast(type, hint)))}"
  return hint.__name__


def element_types(hint: Any) -> tuple[Any, ...]:
  """What the tuple of a field holds; () for a field that is no tuple."""
  if typing.get_origin(hint) is Annotated:
    hint = hint.__origin__
  if typing.get_origin(hint) is not tuple:
    return ()
  return typing.get_args(hint)[:1]


def _group(value: Any, hint: Any, path: str) -> Any:
  if not isinstance(value, hint):
    return build(hint, value, path)
  for name, inner in hints(hint).items():
    cast(getattr(value, name), inner, path, name)
  return value


def _elements(value: Any, hint: Any, path: str, name: str) -> tuple:
  if not isinstance(value, list | tuple):
    expected = allowed(hint)
    if path.startswith("config"):
      expected += f', written --{path}.{name}="({value!r},)"'
    raise FieldError(path, name, value, expected)
  element = typing.get_args(hint)[0]
  return tuple(cast(inner, element, path, f"{name}[{i}]") for i, inner in enumerate(value))


def _plain(value: Any, hint: Any, path: str, name: str) -> Any:
  """A number, a text or a truth value."""
  # To Python a bool is an integer.
  is_number = not isinstance(value, bool)
  if hint is int and is_number and isinstance(value, numbers.Integral):
    return int(value)
  if hint is float and is_number and isinstance(value, numbers.Real):
    return _finite(value, path, name)
  if hint in (int, float) or not isinstance(value, hint):
    raise FieldError(path, name, value, allowed(hint))
  return value


def _finite(value: Any, path: str, name: str) -> float:
  try:
    number = float(value)
  # An integer with more than 308 digits.
  except OverflowError:
    number = math.inf
  if not math.isfinite(number):
    raise FieldError(path, name, value, "a finite float")
  return number


def _shown(value: Any) -> str:
  """A value, with its type where that is not obvious: 'True' and True look alike."""
  if isinstance(value, str | bool):
    return f"{value!r} ({type(value).__name__})"
  return repr(value)
