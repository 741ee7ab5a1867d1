"""The sandboxed pool: cases that the fast path leaves open go to long-lived worker processes with hard limits of time and memory.

A worker is a fresh interpreter (never a fork: JAX is threaded) that imports no JAX; a case reaches it as one line of JSON through a pipe.
"""

import atexit
import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence

from synthjax import progress
from synthjax.errors import Error
from synthjax.records import Verdict
from synthjax.verify import fast, spelling
from synthjax.verify.policy import LONGEST, STRICT, Policy

_START_SECONDS = 60.0  # to import sympy on a busy machine
_REMEMBERED = 1_000_000  # verdicts kept in memory


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of the pool's workers."""

  workers: int = 2  # cases judged side by side by `compare_many`; one process more stands by
  seconds: float = 3.0  # from dispatch to answer; then the worker is killed
  memory: int = 2 << 30  # bytes of address space
  cases: int = 5_000  # after which a worker is replaced: sympy's caches grow


class WorkerStartError(Error, RuntimeError):
  """A worker that cannot start; the message shows what it said."""


class _Worker:
  """One process and its two pipes."""

  def __init__(self, limits: Limits):
    self.limits, self.cases, self._buffer = limits, 0, b""
    # OPENBLAS reserves address space a thread: with one, 2 GB are enough.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    self._command = [sys.executable, "-m", "synthjax.verify.worker", str(limits.memory)]
    self._process = subprocess.Popen(
      self._command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=environment,
      start_new_session=True,
    )  # Ctrl-C is for the parent to handle
    assert self._process.stdin and self._process.stdout
    self._cases, self._answers = self._process.stdin, self._process.stdout
    self._ready = False

  def ask(self, gold: str, prediction: str, policy: Policy) -> tuple[Verdict, bool]:
    """(verdict, whether the worker can go on)."""
    if not self._ready:
      if self._line(_START_SECONDS) is None:
        self.kill()
        raise WorkerStartError(
          f"a verification worker did not start ({' '.join(self._command)} ended with {self._process.returncode}); "
          "run that command by hand to see why"
        )
      self._ready = True
    self.cases += 1
    try:
      self._cases.write(json.dumps([gold, prediction, dataclasses.asdict(policy)]).encode() + b"\n")
      self._cases.flush()
      line = self._line(self.limits.seconds)
    except (BrokenPipeError, TimeoutError) as e:
      return Verdict("undecided", "timeout" if isinstance(e, TimeoutError) else "error"), False
    if line is None:
      # Killed by the kernel for its memory, or by itself: its own case alone is lost.
      return Verdict("undecided", "memory" if self._process.wait() == -9 else "error"), False
    try:
      return Verdict(**json.loads(line)), self.cases < self.limits.cases
    except (ValueError, TypeError) as e:
      return Verdict("undecided", f"error: {type(e).__name__}"), False

  def _line(self, seconds: float) -> bytes | None:
    """The next answer, or None where the process has ended. Raises TimeoutError after `seconds`."""
    deadline, pipe = time.monotonic() + seconds, self._answers
    while b"\n" not in self._buffer:
      if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        raise TimeoutError
      data = os.read(pipe.fileno(), 1 << 16)
      if not data:
        return None
      self._buffer += data
    line, _, self._buffer = self._buffer.partition(b"\n")
    return line

  def is_dead(self) -> bool:
    return self._process.poll() is not None and self._ready

  def kill(self) -> None:
    self._process.kill()
    self._process.wait()
    for pipe in (self._cases, self._answers):
      with contextlib.suppress(OSError):
        pipe.close()


class Pool:
  """Judges pairs of answers; may be used from many threads at once. Use as a context manager, or `shared()`.

  `counts` tells how many cases were settled by what (fast, symbolic, remembered), reasons of the undecided, and workers replaced.
  """

  def __init__(self, policy: Policy = STRICT, limits: Limits | None = None):
    self.policy, self.limits = policy, limits or Limits()
    self.counts: collections.Counter[str] = collections.Counter()
    self._known: dict[tuple[str, str], Verdict] = {}
    self._lock, self._free, self._started = threading.Lock(), queue.SimpleQueue[_Worker](), 0
    self._closed = False
    atexit.register(self.close)

  def compare(self, gold: str, prediction: str | None) -> Verdict:
    """`equal`, `different` or `undecided`, within the deadline of the limits once a worker is up.

    Args:
      gold: the known final answer.
      prediction: the extracted final answer, never a whole response; None where there is none.
    """
    settled = self._at_once(gold, prediction)
    return settled if settled is not None else self._in_worker(gold, str(prediction))

  def compare_many(self, pairs: Sequence[tuple[str, str | None]]) -> list[Verdict]:
    """Verdicts of (gold, prediction) pairs, in order; equal pairs are judged once, the open ones side by side."""
    at_once = {pair: self._at_once(*pair) for pair in dict.fromkeys(pairs)}
    judged = {pair: verdict for pair, verdict in at_once.items() if verdict is not None}
    still_open = [pair for pair in at_once if pair not in judged]
    if still_open:
      with (
        concurrent.futures.ThreadPoolExecutor(self.limits.workers) as threads,
        progress.bar("verify", len(still_open), "cases") as advance,
      ):
        for pair, verdict in zip(
          still_open, threads.map(lambda pair: self._in_worker(*pair), still_open)
        ):
          judged[pair] = verdict
          advance(1)
    return [judged[pair] for pair in pairs]

  def _at_once(self, gold, prediction) -> Verdict | None:
    """What needs no worker: nothing there, too long, plain, or judged before."""
    settled = settle(gold, prediction, self.policy)
    if settled is not None:
      return self._count(settled, "" if settled.reason else "fast")
    known = self._known.get((gold, prediction))
    return known and self._count(known, "remembered")

  def _in_worker(self, gold, prediction) -> Verdict:
    worker = self._take()
    while worker.is_dead():  # while nothing was asked of it
      self._replace(worker)
      worker = self._take()
    try:
      verdict, alive = worker.ask(gold, prediction, self.policy)
    except BaseException:
      self._replace(worker)
      raise
    if alive:
      self._free.put(worker)
    else:
      self._replace(worker)
    with self._lock:
      if len(self._known) >= _REMEMBERED:
        self._known.clear()
      self._known[gold, prediction] = verdict
    return self._count(verdict, "symbolic")

  def _count(self, verdict, way=""):
    with self._lock:
      self.counts.update([name for name in (way, verdict and verdict.reason) if name])
    return verdict

  def _take(self) -> _Worker:
    with self._lock:
      if self._closed:
        raise RuntimeError("this pool is closed")
      if self._started == 0:
        # One more than are used at once: a killed worker's successor imports sympy while the spare one works.
        self._started = self.limits.workers + 1
        for _ in range(self._started):
          self._free.put(_Worker(self.limits))
    return self._free.get()

  def _replace(self, worker) -> None:
    """The next one starts at once, so that its imports overlap with other work."""
    worker.kill()
    if not self._closed:
      self._free.put(_Worker(self.limits))
      self._count(None, "replaced")

  def close(self) -> None:
    """Ends the workers."""
    self._closed = True
    with contextlib.suppress(queue.Empty):
      while True:
        self._free.get_nowait().kill()
    atexit.unregister(self.close)

  def __enter__(self) -> "Pool":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def settle(gold: str, prediction: str | None, policy: Policy = STRICT) -> Verdict | None:
  """The verdict that needs no worker, or None. Never raises."""
  if prediction is None or not prediction.strip():
    return Verdict("undecided", "no-answer")
  if len(prediction) > LONGEST or len(gold) > LONGEST:
    return Verdict("undecided", "too-long")
  if not policy.structure:
    return None
  try:
    same = fast.compare(gold, prediction, policy)
    if same is None and not spelling.is_balanced(spelling.clean(prediction)):
      return Verdict("undecided", "unbalanced-prediction")
  except Exception as e:  # one answer must never stop the others
    return Verdict("undecided", f"error: {type(e).__name__}")
  if same is None:
    return None
  return Verdict("equal" if same else "different")


_shared: dict[str, Pool] = {}
_shared_lock = threading.Lock()


def shared(policy: Policy = STRICT) -> Pool:
  """This process's pool of a policy, made at the first call: for threads and for an Apache Beam `DoFn`, which is pickled."""
  with _shared_lock:
    if policy.name not in _shared:
      _shared[policy.name] = Pool(policy)
    return _shared[policy.name]


def compare_many(pairs: Iterable[tuple[str, str | None]], policy: Policy = STRICT) -> list[Verdict]:
  """`Pool.compare_many` of this process's pool."""
  return shared(policy).compare_many(list(pairs))
