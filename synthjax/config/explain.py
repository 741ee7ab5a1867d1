"""What the fields of a config mean, from the schema itself: comment, type, range and default."""

import ast
import dataclasses
import functools
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any, NamedTuple

from synthjax.config import fields, schema
from synthjax.config.loading import MODEL_OVERRIDES
from synthjax.config.presets import PRESETS
from synthjax.errors import ConfigError

_INDENT = "    "


class Field(NamedTuple):
  """One field of the experiment."""

  key: str  # dotted, such as train.optimizer.beta2
  hint: Any  # its annotation
  default: Any
  comment: str


def describe(key: str = "") -> str:
  """The fields at and below `key` ("": all of them), ready to be printed.

  Raises:
    ConfigError: no such key, with the nearest one.
  """
  key = key.removeprefix("--").removeprefix("config").removeprefix(".")
  key = re.sub(r"\[\d+\]", "[i]", key)
  if key.split(".")[0] == "model_overrides":
    return f"{MODEL_OVERRIDES}\n\n{describe('model' + key.removeprefix('model_overrides'))}"
  every = list(walk(schema.Experiment, schema.Experiment()))
  if not key:
    return "\n".join(map(_lines, every))
  below = re.compile(rf"{re.escape(key)}($|\.|\[)")
  matching = [field for field in every if below.match(field.key)]
  if not matching:
    hint = _hint(key, [field.key for field in every])
    raise ConfigError(f"--explain {key}: a config has no such key{hint}")
  return "\n".join(map(_lines, matching))


def _hint(key: str, keys: list[str]) -> str:
  """The keys that an unknown one may stand for: those with the same last part, or the nearest."""
  last = key.split(".")[-1]
  same = [known for known in keys if known.split(".")[-1] == last]
  if same:
    return f"; did you mean {' or '.join(same)}?"
  return fields.nearest(key, keys)


def walk(cls: Any, defaults: Any, prefix: str = "") -> Iterator[Field]:
  """Every field of a dataclass and, after a group, the fields of the group."""
  comment_of = comments(cls)
  for name, hint in fields.hints(cls).items():
    default = getattr(defaults, name)
    yield Field(key=prefix + name, hint=hint, default=default, comment=comment_of[name])
    if dataclasses.is_dataclass(hint):
      yield from walk(hint, default, f"{prefix}{name}.")
    element = _group_of(hint)
    if element:
      example = element()
      if default:
        example = default[0]
      yield from walk(element, example, f"{prefix}{name}[i].")


@functools.cache
def comments(cls) -> dict[str, str]:
  """Field -> the comment that stands behind it or in the lines above it."""
  source = textwrap.dedent(inspect.getsource(cls))
  tokens = tokenize.generate_tokens(io.StringIO(source).readline)
  by_line = {}
  for token in tokens:
    if token.type == tokenize.COMMENT:
      by_line[token.start[0]] = token.string.lstrip("# ")
  lines = source.splitlines()
  comment_of = {}
  for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
    if not isinstance(node, ast.AnnAssign):
      continue
    parts = []
    if node.end_lineno in by_line:
      parts.append(by_line[node.end_lineno])
    above = node.lineno - 1
    # A comment behind the field before is that field's.
    while above in by_line and lines[above - 1].lstrip().startswith("#"):
      parts.insert(0, by_line[above])
      above -= 1
    name = node.target.id  # type: ignore[union-attr]
    comment_of[name] = " ".join(parts)
  return comment_of


def _group_of(hint) -> Any:
  """The dataclass whose tuple a field holds, if it is one."""
  for inner in fields.element_types(hint):
    if dataclasses.is_dataclass(inner):
      return inner
  return None


def _lines(field: Field) -> str:
  if dataclasses.is_dataclass(field.hint):
    head = f"{field.key}: group"
  elif _group_of(field.hint):
    head = f"{field.key}: tuple of groups"
  else:
    head = f"{field.key} = {field.default!r}: {fields.allowed(field.hint)}"
  comment = field.comment
  if field.key == "model":
    comment += f" Presets: {', '.join(PRESETS)}."
  text = textwrap.fill(comment, 100, initial_indent=_INDENT, subsequent_indent=_INDENT)
  return f"{head}\n{text}"
