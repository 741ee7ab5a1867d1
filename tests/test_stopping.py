"""Signals to a process whose main thread is where an exception would be lost."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
_PROGRAM = """
import asyncio, sys, time
from synthjax import stopping

def busy():  # the signal comes meanwhile
  print("busy", flush=True)
  time.sleep(0.5)

class Removed:
  def __del__(self):
    busy()

async def load():  # as Orbax reads a checkpoint
  asyncio.get_running_loop().call_soon(busy)
  await asyncio.sleep(5)

def work():
  if sys.argv[1] == "callback":
    asyncio.run(load())
  else:
    Removed()
    time.sleep(5)

try:
  with stopping.handled():
    work()
except stopping.Stopped as e:
  print(e)
  sys.exit(e.exit_code)
"""


@pytest.mark.parametrize("where", ["callback", "destructor"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_where_exceptions_are_lost_takes_effect_right_after(where, number, code):
  command = [sys.executable, "-c", _PROGRAM, where]
  pipe = subprocess.PIPE
  run = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
  assert run.stdout and run.stdout.readline() == "busy\n"
  run.send_signal(number)
  asked = time.monotonic()
  output, errors = run.communicate(timeout=30)
  assert run.returncode == code
  assert time.monotonic() - asked < 4
  assert output.startswith("stopped by ")
  assert not errors, "one line, no traceback"
