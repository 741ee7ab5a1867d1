"""What a user can mend: errors whose one sentence is printed without a traceback."""


class Error(Exception):
  """Base of the errors that name what was found, what was expected and what to do.

  `python -m synthjax` prints them in one line; every other exception, JAX's among them, keeps its
  traceback.
  """


class ConfigError(Error, ValueError):
  """A config that cannot be used; the message names the key, the value and what is allowed."""
