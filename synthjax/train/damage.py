"""What may be wrong with a checkpoint: errors, and which exceptions of Orbax mean damaged files."""

import json
import re
from collections.abc import Iterator

from synthjax.errors import Error

# Status codes at the head of tensorstore's messages; only the first set means damaged files.
_DAMAGE = re.compile(r"\b(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|INVALID_ARGUMENT|FAILED_PRECONDITION): ")
_NO_DAMAGE = re.compile(
  r"\b(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|"
  r"UNAUTHENTICATED|UNKNOWN|INTERNAL): "
)
_HEAD = 200  # characters of a message in which its status code stands
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_UNDECODABLE = (json.JSONDecodeError, UnicodeDecodeError, EOFError)


class CheckpointError(Error, RuntimeError):
  """A checkpoint that cannot be written, read or used; the message says which and what to do."""


class DamagedError(CheckpointError):
  """A checkpoint some of whose files are missing, truncated or garbled."""


class MisfitError(CheckpointError):
  """An intact checkpoint of another model or optimizer."""


def is_damage(error: BaseException) -> bool:
  """Whether an error says that a checkpoint's files are missing, truncated or garbled.

  Too little memory, no permission, a file system that does not answer and whatever is unknown do
  not count as damage: the same step may well be readable a minute later.
  """
  damaged = False
  for cause in _chain(error):
    # One cause that is no damage decides: a retry may succeed, and nothing is to be set aside.
    if isinstance(cause, MemoryError):
      return False
    if isinstance(cause, OSError) and not isinstance(cause, _MISSING):
      return False
    head = str(cause)[:_HEAD]
    if _NO_DAMAGE.search(head):
      return False
    if isinstance(cause, ValueError) and _DAMAGE.search(head):
      damaged = True
    if isinstance(cause, (DamagedError, *_MISSING, *_UNDECODABLE)):
      damaged = True
  return damaged


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """An error, the members of groups, and what each was raised from."""
  if error is None:
    return
  yield error
  for member in getattr(error, "exceptions", ()):
    yield from _chain(member)
  # As Python prints it: `from None` hides the context.
  if error.__cause__ is not None:
    yield from _chain(error.__cause__)
  elif not error.__suppress_context__:
    yield from _chain(error.__context__)


def first_line(error: BaseException) -> str:
  """An error's type and the first line of its message."""
  lines = str(error).strip().splitlines() or ["no message"]
  return f"{type(error).__name__}: {lines[0][:_HEAD]}"
