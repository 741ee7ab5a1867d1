"""Starting several processes together, with an error that says which one is missing."""

import contextlib
import dataclasses
import json
import os
import socket
import time

import jax

from synthjax.errors import Error

_started: "Start | None" = None  # set once the processes are connected


class StartError(Error, RuntimeError):
  """Processes that did not come together; the message names the missing ones and where they should have called."""


@dataclasses.dataclass(frozen=True)
class Start:
  """Who takes part. All processes get the same values but `process`."""

  coordinator: str  # host:port of process 0; port + 1 is used for the roll call
  processes: int  # how many
  process: int  # which one this is
  timeout: float = 300.0  # seconds to wait for all of them


def from_environment() -> Start | None:
  """SYNTHJAX_COORDINATOR, SYNTHJAX_PROCESSES, SYNTHJAX_PROCESS (and SYNTHJAX_START_TIMEOUT), or None when unset."""
  names = ("SYNTHJAX_COORDINATOR", "SYNTHJAX_PROCESSES", "SYNTHJAX_PROCESS")
  values = [os.environ.get(n, "") for n in names]
  if not any(values):
    return None
  if not all(values):
    missing = [n for n, v in zip(names, values) if not v]
    raise StartError(f"{', '.join(missing)} is not set; a start of several processes needs {', '.join(names)}")
  timeout = float(os.environ.get("SYNTHJAX_START_TIMEOUT", "300"))
  return Start(values[0], int(values[1]), int(values[2]), timeout)


def start(who: Start | None) -> None:
  """Connects the processes before any device is touched; does nothing for a single process.

  Raises:
    StartError: someone did not come within the timeout; on process 0 it lists who is missing.
  """
  global _started
  if who is None or who.processes == 1:
    return
  host, colon, port = who.coordinator.rpartition(":")
  if not colon or not port.isdigit():
    raise StartError(f"coordinator {who.coordinator!r}: expected HOST:PORT")
  if not 0 <= who.process < who.processes:
    raise StartError(f"process {who.process} of {who.processes}: expected 0 to {who.processes - 1}")
  deadline = time.monotonic() + who.timeout
  if who.process == 0:
    _call_the_roll(host, int(port) + 1, who, deadline)
  else:
    _answer_the_roll(host, int(port) + 1, who, deadline)
  jax.distributed.initialize(who.coordinator, who.processes, who.process,
                             initialization_timeout=max(1, int(deadline - time.monotonic())))
  _started = who


def is_first() -> bool:
  """This process speaks and writes for all. True where there is one process."""
  return _started is None or _started.process == 0


def share() -> tuple[int, int]:
  """(number of this process, how many there are)."""
  return (_started.process, _started.processes) if _started else (0, 1)


def meet(name: str) -> None:
  """Waits until all processes have come to the same place; does nothing for a single process."""
  if _started is not None:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def _call_the_roll(host, port, who, deadline):
  """Process 0 waits until every other process has said its number, then tells all of them to go on."""
  present: dict[int, socket.socket] = {}
  with socket.create_server((host, port), backlog=who.processes) as server:
    while len(present) < who.processes - 1:
      server.settimeout(max(0.01, deadline - time.monotonic()))
      try:
        connection, _ = server.accept()
        connection.settimeout(5)
        number = json.loads(connection.recv(64))["process"]
      except TimeoutError:
        missing = sorted(set(range(1, who.processes)) - set(present))
        message = (f"process {', '.join(map(str, missing))} of {who.processes} did not call {host}:{port} within "
                   f"{who.timeout:.0f} s; {len(present) + 1} are here: start the missing ones with the same coordinator")
        _tell(present, {"error": message})
        raise StartError(message) from None
      except (OSError, ValueError, KeyError, TypeError):
        continue  # not one of ours; somebody scanned the port
      present[number] = connection
    _tell(present, {"go": True})


def _answer_the_roll(host, port, who, deadline):
  while True:
    try:
      with socket.create_connection((host, port), timeout=max(0.01, deadline - time.monotonic())) as connection:
        connection.sendall(json.dumps({"process": who.process}).encode())
        connection.settimeout(max(0.01, deadline - time.monotonic()) + 5)
        answer = json.loads(connection.recv(4096))
      break
    except (OSError, ValueError) as e:
      if time.monotonic() > deadline:
        raise StartError(f"process {who.process}: process 0 of {who.processes} did not answer at {host}:{port} within "
                         f"{who.timeout:.0f} s ({e}); start process 0 there") from None
      time.sleep(0.1)
  if "error" in answer:
    raise StartError(answer["error"])


def _tell(present, message):
  for connection in present.values():
    # A process that is gone will not wait for us.
    with connection, contextlib.suppress(OSError):
      connection.sendall(json.dumps(message).encode())
