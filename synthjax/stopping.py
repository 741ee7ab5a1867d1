"""SIGTERM and Ctrl-C: every verb stops within seconds and prints one line; exit code 143 or 130.

Everything on disk survives a SIGKILL at any moment, so most work is simply abandoned: the signal
raises `Stopped` in the main thread. A training is worth finishing its step for: within `deferred()`
the signal only sets `asked()`, and the loop returns by itself. Where the main thread hangs in a
library, the process ends all the same.

The signals are blocked in every thread and one thread waits for them. Otherwise a signal may
interrupt a system call in a library's thread, which may take that for an error (seen: a collective
of two processes that never ended).
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from synthjax import progress

GRACE_SECONDS = 10.0  # from a signal to the end, where nothing is worth waiting for
_REPEAT_SECONDS = 2.0  # a launcher and its terminal may send the same signal twice at once
_POLL_SECONDS = 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_WAKE = signal.SIGUSR2  # takes the main thread out of a wait
_SWALLOWING = ("__del__", "_xla_gc_callback")  # functions whose exceptions Python discards
_CALLBACK = ("asyncio.events", "_run")  # an event loop logs what its callbacks raise, and goes on


class Stopped(BaseException):
  """The user or the scheduler asked this run to stop.

  Like KeyboardInterrupt it is no `Exception`: nothing may take it for a failure.

  Args:
    number: of the signal.
    kept: says what is on disk, as the middle of the message.
  """

  def __init__(self, number: int, kept: str = "what is finished is kept"):
    self.exit_code = 128 + number
    name = signal.Signals(number).name
    if number == signal.SIGINT:
      name = "Ctrl-C"
    super().__init__(f"stopped by {name}; {kept}, run the same command to go on")


class _State:
  """What this process knows about being asked to stop."""

  def __init__(self) -> None:
    self.lock = threading.Lock()
    self.number = 0  # of the first signal; 0: nobody asked
    self.asked_at = 0.0
    self.deferring = False
    self.raised = False  # in the main thread
    self.ended = threading.Event()  # nobody waits for signals any more
    self.heard: Callable[[], None] | None = None  # called once, outside the main thread
    self.tell_others: Callable[[int], None] | None = None


_state = _State()


@contextlib.contextmanager
def handled() -> Iterator[None]:
  """Within the block, which the main thread enters, signals stop the run as this module says."""
  global _state
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  _state = _State()
  before = {number: signal.signal(number, _caught) for number in _SIGNALS}
  before[_WAKE] = signal.signal(_WAKE, _raise)
  # Threads that begin from now on inherit the mask.
  mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
  watcher = threading.Thread(target=_watch, args=(_state,), name="signals", daemon=True)
  watcher.start()
  try:
    yield
  finally:
    _state.ended.set()
    watcher.join()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def handed_over() -> Iterator[None]:
  """Within the block signals reach the handlers that it installs, such as an event loop's."""
  _state.ended.set()
  mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def asked() -> int:
  """The signal that asks this run to stop; 0 where none does."""
  return _state.number


def tell_others(tell: Callable[[int], None]) -> None:
  """From now on `tell(signal number)` passes a signal on to the other processes of this start."""
  _state.tell_others = tell


def ask(number: int) -> None:
  """Asks this run to stop. For threads other than the main one."""
  with _state.lock:
    if _state.number:
      return
    _state.number, _state.asked_at = number, time.monotonic()
    heard, tell, deferring = _state.heard, _state.tell_others, _state.deferring
  if tell:
    tell(number)
  if heard:
    threading.Thread(target=heard, name="stopping", daemon=True).start()
  threading.Thread(target=_end_in_time, args=(_state,), name="grace", daemon=True).start()
  if not deferring:
    _wake()


@contextlib.contextmanager
def deferred(heard: Callable[[], None] | None = None) -> Iterator[None]:
  """Within the block a signal interrupts nothing: the work polls `asked()` and returns by itself.

  Args:
    heard: called once when a signal comes, in a thread of its own.

  Raises:
    Stopped: on entering, where a signal came before; on leaving, where one came within the block.
  """
  with _state.lock:
    if _state.number:
      _state.raised = True
      raise Stopped(_state.number)
    _state.deferring, _state.heard = True, heard
  try:
    yield
  finally:
    with _state.lock:
      # The work returned because of the signal, or `Stopped` is raised below.
      _state.raised |= _state.number != 0
      _state.deferring, _state.heard = False, None
      # What is left to clean up has its own grace period.
      _state.asked_at = time.monotonic()
  if _state.number:
    _state.raised = True
    raise Stopped(_state.number)


def _caught(number: int, frame) -> None:
  """Handles a signal in a thread that began before `handled` and so does not block it."""
  ask(number)
  _raise(number, frame)


def _raise(_number: int, frame) -> None:
  """Raises `Stopped` in the main thread, where it is due."""
  if not _state.number or _state.deferring or _state.raised:
    return
  # `_end_in_time` wakes the main thread again, when it is elsewhere.
  if _is_swallowed(frame):
    return
  _state.raised = True
  raise Stopped(_state.number)


def _is_swallowed(frame) -> bool:
  """Whether an exception raised in `frame` would be lost on its way up."""
  while frame:
    name = frame.f_code.co_name
    if name in _SWALLOWING or (frame.f_globals.get("__name__"), name) == _CALLBACK:
      return True
    frame = frame.f_back
  return False


def _wake() -> None:
  main = threading.main_thread().ident
  assert main is not None
  signal.pthread_kill(main, _WAKE)


def _watch(state: _State) -> None:
  while not state.ended.is_set():
    came = signal.sigtimedwait(_SIGNALS, _POLL_SECONDS)
    if came is None:
      continue
    repeated = state.number and time.monotonic() - state.asked_at > _REPEAT_SECONDS
    if repeated and came.si_signo == signal.SIGINT:
      _leave()
    ask(came.si_signo)


def _end_in_time(state: _State) -> None:
  while state is _state:
    time.sleep(_POLL_SECONDS)
    if not state.deferring and not state.raised:
      _wake()
    late = time.monotonic() - state.asked_at > GRACE_SECONDS
    if late and not state.deferring:
      _leave()


def _leave() -> None:
  stopped = Stopped(_state.number)
  progress.error(f"synthjax: {stopped}")
  os._exit(stopped.exit_code)
