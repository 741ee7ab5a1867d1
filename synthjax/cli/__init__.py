"""The verbs of the command line, a file a family; each verb's options stand beside its body.

A family has `add_verbs(verbs)`. Heavy imports stay inside the bodies, so that `--help` answers at
once.
"""

import argparse

from synthjax import __version__
from synthjax.cli import data, exchange, inspect, sample, study, train

# In the order in which --help lists them.
FAMILIES = (train, exchange, sample, study, data, inspect)


def make_parser() -> argparse.ArgumentParser:
  """The parser of all verbs; it sets `verb` to the function that runs the one that was given."""
  parser = argparse.ArgumentParser(
    prog="synthjax",
    description="Measures what synthetic data is worth.",
    epilog="Any field of a config can be set: --config.train.steps=100",
  )
  parser.add_argument("--version", action="version", version=f"synthjax {__version__}")
  verbs = parser.add_subparsers(required=True, metavar="VERB")
  for family in FAMILIES:
    family.add_verbs(verbs)
  return parser


def take_overrides(
  parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[list[str], list[str]]:
  """Parts a command line into KEY=VALUE of every `--config.KEY=VALUE`, and the rest.

  A key without its value ends the program with code 2.
  """
  overrides, rest = [], []
  for argument in arguments:
    if not argument.startswith("--config."):
      rest.append(argument)
    elif "=" in argument:
      overrides.append(argument.removeprefix("--config."))
    else:
      parser.error(f"{argument}: expected {argument}=VALUE, with '=' and without spaces around it")
  return overrides, rest
