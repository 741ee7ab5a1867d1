"""What a user can mend: errors whose one sentence is printed without a traceback."""

import errno

# What a user can mend by another folder, other permissions or more space.
_DISK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR,
         errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}


class Error(Exception):
  """Base of the errors that name what was found, what was expected and what to do.

  `python -m synthjax` prints them in one line; every other exception, JAX's among them, keeps its
  traceback.
  """


class ConfigError(Error, ValueError):
  """A config that cannot be used; the message names the key, the value and what is allowed."""


def of_the_disk(error: Exception) -> str:
  """One sentence about a file that cannot be read or written, "" for any other error."""
  if not isinstance(error, OSError) or error.errno not in _DISK:
    return ""
  return (f"{error.filename or 'a file'}: {error.strerror}; check its permissions and the space "
          "left on its disk, or choose another --workdir")
