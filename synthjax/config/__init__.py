"""What an experiment is: every field once, named model shapes, and how a config file becomes it.

The ground floor: it imports nothing of ours but the errors.
"""

from synthjax.config.loading import (
  check_files,
  describe,
  leaves,
  load,
  profile_steps,
  read,
  resolve,
)
from synthjax.errors import ConfigError

__all__ = [
  "ConfigError",
  "check_files",
  "describe",
  "leaves",
  "load",
  "profile_steps",
  "read",
  "resolve",
]
