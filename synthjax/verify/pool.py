"""The sandboxed pool: worker processes judge the cases that the fast path leaves open.

Workers live long and have hard limits of time and memory. A worker is a fresh interpreter (never a
fork: JAX is threaded) that imports no JAX; a case reaches it as one line of JSON through a pipe.
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
from typing import NamedTuple

from synthjax import progress
from synthjax.errors import Error
from synthjax.records import Verdict
from synthjax.verify import fast, spelling
from synthjax.verify.policy import LONGEST, STRICT, EqualityPolicy

_START_SECONDS = 60.0  # to import sympy on a busy machine
_REMEMBERED = 1_000_000  # verdicts kept in memory


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of the pool's workers."""

  workers: int = 2  # cases that `compare_many` judges at once; one process more stands by
  seconds: float = 3.0  # from dispatch to answer; then the worker is killed
  memory: int = 2 << 30  # bytes of address space
  cases: int = 5_000  # after which a worker is replaced: sympy's caches grow


class WorkerStartError(Error, RuntimeError):
  """A worker that cannot start; the message shows what it said."""


class _Answer(NamedTuple):
  """What a worker says, and whether it can be asked again."""

  verdict: Verdict
  can_go_on: bool


class _Worker:
  """One process and its two pipes."""

  def __init__(self, limits: Limits):
    self.limits = limits
    self.cases = 0
    self._buffer = b""
    # OPENBLAS reserves address space a thread: with one, 2 GB are enough.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    self._command = [sys.executable, "-m", "synthjax.verify.worker", str(limits.memory)]
    self._process = subprocess.Popen(
      self._command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=environment,
      start_new_session=True,  # Ctrl-C is for the parent to handle
    )
    assert self._process.stdin and self._process.stdout
    self._cases = self._process.stdin
    self._answers = self._process.stdout
    self._ready = False

  def ask(self, gold: str, prediction: str, policy: EqualityPolicy) -> _Answer:
    """Sends a case and waits for its verdict, until the limit of seconds is over."""
    if not self._ready:
      self._wait_until_ready()
    self.cases += 1
    case = json.dumps([gold, prediction, dataclasses.asdict(policy)])
    try:
      self._cases.write(case.encode() + b"\n")
      self._cases.flush()
      line = self._line(self.limits.seconds)
    except TimeoutError:
      return _lost("timeout")
    except BrokenPipeError:
      return _lost("error")
    if line is None:
      # Killed by the kernel for its memory, or by itself: its own case alone is lost.
      if self._process.wait() == -9:
        return _lost("memory")
      return _lost("error")
    try:
      verdict = Verdict(**json.loads(line))
    except (ValueError, TypeError) as e:
      return _lost(f"error: {type(e).__name__}")
    return _Answer(verdict, can_go_on=self.cases < self.limits.cases)

  def _wait_until_ready(self) -> None:
    if self._line(_START_SECONDS) is None:
      self.kill()
      raise WorkerStartError(
        f"a verification worker did not start ({' '.join(self._command)} ended with "
        f"{self._process.returncode}); run that command by hand to see why"
      )
    self._ready = True

  def _line(self, seconds: float) -> bytes | None:
    """The next answer, or None where the process has ended. Raises TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    pipe = self._answers
    while b"\n" not in self._buffer:
      remaining = max(0.0, deadline - time.monotonic())
      readable, _, _ = select.select([pipe], [], [], remaining)
      if not readable:
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


def _lost(reason: str) -> _Answer:
  """The answer of a worker that has to be replaced."""
  return _Answer(Verdict("undecided", reason), can_go_on=False)


class Pool:
  """Judges pairs of answers; may be used from many threads at once.

  Use it as a context manager, or take `shared()`. `counts` tells how many cases were settled by
  what (fast, symbolic, remembered), the reasons of the undecided, and how many workers were
  replaced.
  """

  def __init__(self, policy: EqualityPolicy = STRICT, limits: Limits | None = None):
    self.policy = policy
    self.limits = limits or Limits()
    self.counts: collections.Counter[str] = collections.Counter()
    self._known: dict[tuple[str, str], Verdict] = {}
    self._lock = threading.Lock()
    self._free = queue.SimpleQueue[_Worker]()
    self._started = 0
    self._closed = False
    atexit.register(self.close)

  def compare(self, gold: str, prediction: str | None) -> Verdict:
    """`equal`, `different` or `undecided`, within the deadline of the limits once a worker is up.

    Args:
      gold: the known final answer.
      prediction: the extracted final answer, never a whole response; None where there is none.
    """
    settled = self._at_once(gold, prediction)
    if settled is not None:
      return settled
    return self._in_worker(gold, str(prediction))

  def compare_many(self, pairs: Sequence[tuple[str, str | None]]) -> list[Verdict]:
    """Verdicts of (gold, prediction) pairs, in order.

    Equal pairs are judged once; those that need a worker are judged side by side.
    """
    judged = {}
    still_open = []
    for pair in dict.fromkeys(pairs):
      verdict = self._at_once(*pair)
      if verdict is None:
        still_open.append(pair)
      else:
        judged[pair] = verdict
    if still_open:
      with (
        concurrent.futures.ThreadPoolExecutor(self.limits.workers) as threads,
        progress.bar("verify", len(still_open), "cases") as advance,
      ):
        verdicts = threads.map(self._in_worker, *zip(*still_open))
        for pair, verdict in zip(still_open, verdicts):
          judged[pair] = verdict
          advance(1)
    return [judged[pair] for pair in pairs]

  def _at_once(self, gold, prediction) -> Verdict | None:
    """What needs no worker: nothing there, too long, plain, or judged before."""
    settled = settle(gold, prediction, self.policy)
    if settled is not None:
      self._count(settled.reason or "fast")
      return settled
    known = self._known.get((gold, prediction))
    if known is not None:
      self._count("remembered", known.reason)
    return known

  def _in_worker(self, gold, prediction) -> Verdict:
    worker = self._take()
    while worker.is_dead():  # while nothing was asked of it
      self._replace(worker)
      worker = self._take()
    try:
      answer = worker.ask(gold, prediction, self.policy)
    except BaseException:
      self._replace(worker)
      raise
    if answer.can_go_on:
      self._free.put(worker)
    else:
      self._replace(worker)
    with self._lock:
      if len(self._known) >= _REMEMBERED:
        self._known.clear()
      self._known[gold, prediction] = answer.verdict
    self._count("symbolic", answer.verdict.reason)
    return answer.verdict

  def _count(self, *names: str) -> None:
    with self._lock:
      self.counts.update(name for name in names if name)

  def _take(self) -> _Worker:
    with self._lock:
      if self._closed:
        raise RuntimeError("this pool is closed")
      if self._started == 0:
        # One more than are used at once: a killed worker's successor imports sympy while the spare
        # one works.
        self._started = self.limits.workers + 1
        for _ in range(self._started):
          self._free.put(_Worker(self.limits))
    return self._free.get()

  def _replace(self, worker) -> None:
    """The next one starts at once, so that its imports overlap with other work."""
    worker.kill()
    if not self._closed:
      self._free.put(_Worker(self.limits))
      self._count("replaced")

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


def settle(gold: str, prediction: str | None, policy: EqualityPolicy = STRICT) -> Verdict | None:
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
  if same:
    return Verdict("equal")
  return Verdict("different")


_shared: dict[str, Pool] = {}
_shared_lock = threading.Lock()


def shared(policy: EqualityPolicy = STRICT) -> Pool:
  """This process's pool of a policy, made at the first call.

  For threads, and for an Apache Beam `DoFn`, which is pickled and cannot hold a pool.
  """
  with _shared_lock:
    if policy.name not in _shared:
      _shared[policy.name] = Pool(policy)
    return _shared[policy.name]


def compare_many(
  pairs: Iterable[tuple[str, str | None]], policy: EqualityPolicy = STRICT
) -> list[Verdict]:
  """`Pool.compare_many` of this process's pool."""
  return shared(policy).compare_many(list(pairs))
