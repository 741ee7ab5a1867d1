"""What a user can mend: errors whose one sentence is printed without a traceback."""

import errno
import re

# What a user can mend by another folder, other permissions or more space.
_DISK = {
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.ENOSPC,
  errno.EDQUOT,
  errno.ENOTDIR,
  errno.EEXIST,
  errno.EISDIR,
  errno.ENAMETOOLONG,
}

_FULL = "No space left on device"


class Error(Exception):
  """Base of the errors that name what was found, what was expected and what to do.

  `python -m synthjax` prints them in one line; every other exception, JAX's among them, keeps its
  traceback.
  """


class ConfigError(Error, ValueError):
  """A config that cannot be used; the message names the key, the value and what is allowed."""


def of_the_disk(error: Exception) -> str:
  """One sentence about a file that cannot be read or written, "" for any other error."""
  said, path = "", ""
  if isinstance(error, OSError) and error.errno in _DISK:
    said, path = error.strerror or "", error.filename or ""
  elif _FULL in str(error):  # as Orbax and Beam pass it on
    found = re.search(r"/[^\s\";:]+", str(error))
    said, path = _FULL, found.group() if found else ""
  if not said:
    return ""
  return (
    f"{path or 'a file'}: {said}; check its permissions and the space left on its disk, or "
    "choose another --workdir"
  )
