"""The command line as a user starts it, in a process of its own."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def start(verb: str, workdir: pathlib.Path, *more, **variables: str) -> subprocess.Popen[str]:
  """Starts a verb on the smoke training; its output, errors included, is the process's stdout.

  Args:
    verb: of the command line.
    workdir: of the run.
    more: further arguments.
    variables: of the environment, beside those that are set.
  """
  command = [sys.executable, "-m", "synthjax", verb, "--config", "configs/world_sft.py:smoke"]
  return subprocess.Popen(
    [*command, "--workdir", str(workdir), *map(str, more)],
    cwd=ROOT,
    env={**os.environ, **variables},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
