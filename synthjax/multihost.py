"""Several processes that start, wait, fail and stop together.

Beside JAX's own connections the processes keep a channel to the first of them: plain TCP, one line
of JSON a message. Through it they find each other, wait at barriers, agree on values, and learn at
once when one of them fails, is asked to stop, or is gone. JAX alone would leave the others in a
collective until its own limits run out, minutes later.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from typing import Any

import jax

from synthjax import progress, stopping
from synthjax.errors import Error


class StartError(Error, RuntimeError):
  """Processes that did not connect.

  The message names the missing ones and the address that they should have connected to.
  """


@dataclasses.dataclass(frozen=True)
class Start:
  """Who takes part. All processes get the same values but `process`."""

  coordinator: str  # host:port of process 0; port + 1 is used for the channel
  processes: int  # how many
  process: int  # which one this is
  timeout: float = 300.0  # seconds to wait for all of them


def from_environment() -> Start | None:
  """The start that the environment describes; None where it describes none.

  Reads SYNTHJAX_COORDINATOR, SYNTHJAX_PROCESSES and SYNTHJAX_PROCESS, which are set together, and
  SYNTHJAX_START_TIMEOUT.

  Raises:
    StartError: only some of them are set, or a number is malformed.
  """
  names = ("SYNTHJAX_COORDINATOR", "SYNTHJAX_PROCESSES", "SYNTHJAX_PROCESS")
  values = [os.environ.get(name, "") for name in names]
  if not any(values):
    return None
  if not all(values):
    missing = [name for name, value in zip(names, values) if not value]
    raise StartError(
      f"{', '.join(missing)} is not set; a start of several processes needs {', '.join(names)}"
    )
  coordinator, processes, process = values
  timeout = os.environ.get("SYNTHJAX_START_TIMEOUT", "300")
  try:
    return Start(
      coordinator=coordinator,
      processes=int(processes),
      process=int(process),
      timeout=float(timeout),
    )
  except ValueError:
    raise StartError(
      f"SYNTHJAX_PROCESSES={processes!r}, SYNTHJAX_PROCESS={process!r}, "
      f"SYNTHJAX_START_TIMEOUT={timeout!r}: expected two whole numbers and a number of seconds"
    ) from None


def start(who: Start | None) -> None:
  """Connects the processes before any device is touched; does nothing for a single process.

  Raises:
    StartError: a process did not connect within the timeout; process 0 lists the missing ones.
  """
  global _channel
  if who is None or who.processes == 1:
    return
  host, colon, port = who.coordinator.rpartition(":")
  if not colon or not port.isdigit():
    raise StartError(f"coordinator {who.coordinator!r}: expected HOST:PORT")
  if not 0 <= who.process < who.processes:
    raise StartError(f"process {who.process} of {who.processes}: expected 0 to {who.processes - 1}")
  deadline = time.monotonic() + who.timeout
  if who.process == 0:
    connections = _call_the_roll(host, int(port) + 1, who, deadline)
  else:
    connections = {0: _answer_the_roll(host, int(port) + 1, who, deadline)}
  channel = _Channel(who, connections)
  stopping.tell_others(channel.tell_to_stop)
  # JAX's own service would take SIGTERM for itself.
  if "jax_enable_preemption_service" in jax.config.values:
    jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    who.coordinator,
    who.processes,
    who.process,
    initialization_timeout=max(1, int(deadline - time.monotonic())),
  )
  _channel = channel


def is_first() -> bool:
  """This process speaks and writes for all. True where there is one process."""
  return _channel is None or _channel.who.process == 0


def share() -> tuple[int, int]:
  """(number of this process, how many there are)."""
  if _channel is None:
    return 0, 1
  return _channel.who.process, _channel.who.processes


def barrier(name: str) -> None:
  """Waits until all processes have reached the same barrier; does nothing for a single process."""
  gather(name, None)


def gather(name: str, value: Any) -> list[Any]:
  """Every process's value, by number, once all have reached the same barrier.

  Args:
    name: of the barrier; all processes pass barriers in the same order.
    value: JSON.
  """
  if _channel is None:
    return [value]
  return _channel.gather(name, value)


def agree(name: str, value: Any) -> Any:
  """The first process's value, on all of them."""
  return gather(name, value)[0]


def leave(message: str, exit_code: int) -> None:
  """Ends this process because of an error or a signal, and with it the others.

  All print the same message. Returns where there is one process: its caller ends it.
  """
  if _channel is None:
    return
  _channel.tell_failure(message, exit_code)
  sys.stdout.flush()
  sys.stderr.flush()
  # A usual exit would wait in JAX for processes that will never come.
  os._exit(exit_code)


def finish() -> None:
  """Tells the others that this process has done its work and will disconnect."""
  if _channel is not None:
    _channel.say_goodbye()


class _Channel:
  """This process's connections: of the first process to all others, of the others to the first.

  The first process forwards what concerns all. Each connection has a thread that reads it.
  """

  def __init__(self, who: Start, connections: dict[int, socket.socket]):
    self.who = who
    self._connections = connections
    self._sending = threading.Lock()
    self._changed = threading.Condition()
    # Barriers by (name, how often that name was passed before).
    self._values: dict[tuple[str, int], dict[int, Any]] = {}  # by process, as they arrive
    self._gathered: dict[tuple[str, int], list[Any]] = {}
    self._visits: dict[str, int] = {}
    self._gone: set[int] = set()  # that have said goodbye
    for process, connection in connections.items():
      reader = threading.Thread(
        target=self._read, args=(process, connection), name=f"process {process}", daemon=True
      )
      reader.start()

  def gather(self, name: str, value: Any) -> list[Any]:
    with self._changed:
      visit = self._visits.get(name, 0)
      self._visits[name] = visit + 1
    key = (name, visit)
    self._arrive(self.who.process, key, value)
    with self._changed:
      # Woken now and then: signals are handled between two waits.
      while key not in self._gathered:
        self._changed.wait(1.0)
      return self._gathered.pop(key)

  def tell_to_stop(self, number: int) -> None:
    self._send({"stop": number})

  def tell_failure(self, message: str, exit_code: int) -> None:
    self._send({"failed": message, "exit_code": exit_code})

  def say_goodbye(self) -> None:
    self._send({"goodbye": True})
    with self._changed:
      self._gone |= set(range(self.who.processes))

  def _arrive(self, process: int, key: tuple[str, int], value: Any) -> None:
    """Records that a process reached a barrier; the first process tells all once all have."""
    if self.who.process != 0:
      self._send({"arrived": key, "value": value})
      return
    with self._changed:
      values = self._values.setdefault(key, {})
      values[process] = value
      complete = len(values) == self.who.processes
      if complete:
        del self._values[key]
    if complete:
      gathered = [values[k] for k in range(self.who.processes)]
      self._send({"gathered": key, "values": gathered})
      self._release(key, gathered)

  def _release(self, key: tuple[str, int], values: list[Any]) -> None:
    with self._changed:
      self._gathered[key] = values
      self._changed.notify_all()

  def _send(self, message: dict, but: int = -1) -> None:
    data = json.dumps(message).encode() + b"\n"
    with self._sending:
      for process, connection in self._connections.items():
        if process == but:
          continue
        # A process that is gone is noticed by the thread that reads its connection.
        with contextlib.suppress(OSError):
          connection.sendall(data)

  def _read(self, process: int, connection: socket.socket) -> None:
    with contextlib.suppress(OSError), connection.makefile("r", encoding="utf-8") as lines:
      for line in lines:
        self._hear(process, json.loads(line))
    if process not in self._gone:
      self._fail(
        f"process {process} of {self.who.processes} ended without a word "
        "(killed, or its host is gone); run the same command again on all of them to go on",
        1,
      )

  def _hear(self, process: int, message: dict) -> None:
    if "arrived" in message:
      self._arrive(process, tuple(message["arrived"]), message["value"])
    elif "gathered" in message:
      self._release(tuple(message["gathered"]), message["values"])
    elif "goodbye" in message:
      with self._changed:
        self._gone.add(process)
    elif "stop" in message:
      self._pass_on(process, message)
      stopping.ask(message["stop"])
    elif "failed" in message:
      self._fail(message["failed"], message["exit_code"], process)

  def _pass_on(self, process: int, message: dict) -> None:
    if self.who.process == 0:
      self._send(message, but=process)

  def _fail(self, message: str, exit_code: int, process: int = -1) -> None:
    """Ends this process, whatever its main thread is waiting for."""
    self._pass_on(process, {"failed": message, "exit_code": exit_code})
    progress.error(f"synthjax: {message}")
    sys.stdout.flush()
    os._exit(exit_code)


_channel: _Channel | None = None  # set once the processes are connected


def _call_the_roll(host: str, port: int, who: Start, deadline: float) -> dict[int, socket.socket]:
  """Process 0 waits until every other process has sent its number, then tells all to go on."""
  present: dict[int, socket.socket] = {}
  with socket.create_server((host, port), backlog=who.processes) as server:
    while len(present) < who.processes - 1:
      server.settimeout(max(0.01, deadline - time.monotonic()))
      try:
        connection, _ = server.accept()
        connection.settimeout(5)
        number = json.loads(_line(connection))["process"]
      except TimeoutError:
        missing = sorted(set(range(1, who.processes)) - set(present))
        message = (
          f"process {', '.join(map(str, missing))} of {who.processes} did not call {host}:{port} "
          f"within {who.timeout:.0f} s; {len(present) + 1} are here: start the missing ones with "
          "the same coordinator"
        )
        _tell(present, {"error": message})
        raise StartError(message) from None
      # Not one of ours: somebody scanned the port.
      except (OSError, ValueError, KeyError, TypeError):
        continue
      present[number] = connection
    _tell(present, {"go": True})
  for connection in present.values():
    _keep(connection)
  return present


def _answer_the_roll(host: str, port: int, who: Start, deadline: float) -> socket.socket:
  """Another process sends its number to process 0 until that answers."""
  while True:
    connection = None
    try:
      left = max(0.01, deadline - time.monotonic())
      connection = socket.create_connection((host, port), timeout=left)
      connection.sendall(json.dumps({"process": who.process}).encode() + b"\n")
      left = max(0.01, deadline - time.monotonic())
      # Process 0 is to report a missing process first, and by name.
      connection.settimeout(left + 5)
      answer = json.loads(_line(connection))
      break
    except (OSError, ValueError) as e:
      if connection:
        connection.close()
      if time.monotonic() > deadline:
        raise StartError(
          f"process {who.process}: process 0 of {who.processes} did not answer at {host}:{port} "
          f"within {who.timeout:.0f} s ({e}); start process 0 there"
        ) from None
      time.sleep(0.1)
  if "error" in answer:
    raise StartError(answer["error"])
  _keep(connection)
  return connection


def _line(connection: socket.socket) -> bytes:
  """One line, byte by byte: what follows it is for the channel to read."""
  line = b""
  while not line.endswith(b"\n"):
    byte = connection.recv(1)
    if not byte or len(line) > 4096:
      raise ValueError(f"the connection ended after {line[:60]!r}")
    line += byte
  return line


def _keep(connection: socket.socket) -> None:
  """Keeps a connection for the whole run; a host that vanishes is noticed within a minute."""
  connection.settimeout(None)
  connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
    if hasattr(socket, name):
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _tell(present: dict[int, socket.socket], message: dict) -> None:
  for connection in present.values():
    # A process that is gone waits for no message.
    with contextlib.suppress(OSError):
      connection.sendall(json.dumps(message).encode() + b"\n")
