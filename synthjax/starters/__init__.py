"""Configs to begin from: `synthjax init --from NAME FILE` writes a copy of one."""

import importlib.resources
import pathlib

from synthjax import files


def write(name: str, path: files.Path) -> None:
  """Writes a copy of the starter `name`, whose command names the copy.

  Raises:
    DataError: the file exists already, or cannot be a config's name.
  """
  path = pathlib.Path(path)
  if path.exists():
    raise files.DataError(
      f"{path}: exists already, and nothing was written; give the name of a new file"
    )
  if path.suffix != ".py":
    raise files.DataError(
      f"{path}: a config is a Python file; give a name such as {path.with_suffix('.py')}"
    )
  text = (importlib.resources.files(__name__) / f"{name}.py").read_text(encoding="utf-8")
  with files.replacing(path) as f:
    f.write(text.replace("THIS_FILE", str(path)))
