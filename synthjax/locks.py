"""One writer a folder: locks that name their holder and do not outlive it.

A lock is a small file beside or in what it guards. It appears whole or not at all (a hard link to a
scratch file), so two processes never both make it. While its holder lives, the file's time is
renewed every few seconds. Whether the holder still lives is known at once on its own machine, where
its process number and the moment when that process started are looked up, and elsewhere by the age
of the file. Ages are differences between two times of the same file system, so clocks need not
agree.

A dead holder's lock is replaced by whoever holds the right to do so, which is itself a lock: named
after the dead holder, so that of two that take over at once one wins. Needs nothing but links,
renames and times: no flock, which shared file systems keep per machine.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from synthjax.errors import Error

RENEWED_EVERY = 5.0  # seconds between two renewals of a lock that is held
STALE_AFTER = 60.0  # seconds without one, after which a holder on another machine counts as dead

_UNKNOWN = "unknown"
_REMEDY = "wait for it or stop it, or give another --workdir"

Path = str | os.PathLike


class LockError(Error, RuntimeError):
  """Another process works there; the message says which one, since when and what to do."""


@dataclasses.dataclass(frozen=True)
class Holder:
  """Who holds a lock."""

  what: str  # it does, for readers: "synthjax train"
  host: str
  machine: str  # where process numbers mean the same: this boot of it, and this container
  pid: int
  started: str  # when that process started, as its machine counts
  since: str  # local time at which the lock was taken
  token: str  # of this lock alone

  def __str__(self) -> str:
    return f"{self.what} on host {self.host}, process {self.pid}, since {self.since}"


class _HeldError(Exception):
  """The lock has a holder that lives."""

  def __init__(self, holder: Holder):
    super().__init__(str(holder))
    self.holder = holder


@contextlib.contextmanager
def folder_lock(
  folder: Path, what: str, remedy: str = _REMEDY, patience: float = 0.0
) -> Iterator[None]:
  """Within the block no other start works on a folder.

  The first of several processes holds the lock for its whole start. A missing folder is made, and
  removed again if nothing was put into it.

  Args:
    folder: what is guarded; the lock is `.lock` in it.
    what: is done, for the message that another start prints.
    remedy: what the user of another start can do.
    patience: seconds to wait for another holder.

  Raises:
    LockError: another start holds it.
  """
  from synthjax import multihost  # imports jax

  folder = pathlib.Path(folder).absolute()
  with contextlib.ExitStack() as held:
    if multihost.is_first():
      held.enter_context(_made(folder))
      held.enter_context(lock(folder / ".lock", what, f"{folder}: {remedy}", patience))
    multihost.barrier(f"{folder} locked")
    yield


@contextlib.contextmanager
def lock_beside(path: Path, what: str, remedy: str) -> Iterator[None]:
  """As `folder_lock`, for a file or folder that will appear or be replaced.

  The lock lies beside it.

  Raises:
    LockError: another start holds it.
  """
  from synthjax import multihost  # imports jax

  path = pathlib.Path(path).absolute()
  with contextlib.ExitStack() as held:
    if multihost.is_first():
      held.enter_context(lock(beside(path), what, f"{path}: {remedy}"))
    multihost.barrier(f"{path} locked")
    yield


def check_free(folder: Path, remedy: str = _REMEDY) -> None:
  """Raises LockError where another start holds a folder's lock now, or the folder is a file."""
  path = pathlib.Path(folder).absolute() / ".lock"
  _refuse_file(path.parent)
  holder = _read(path)
  if holder is not None and _lives(path, holder):
    raise LockError(_refusal(path, holder, f"{path.parent}: {remedy}"))


def beside(path: Path) -> pathlib.Path:
  """The lock file of a file or folder that may be renamed or replaced while it is guarded."""
  path = pathlib.Path(path)
  return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def lock(
  path: Path,
  what: str,
  advice: str,
  patience: float = 0.0,
  waiting: Callable[[Holder], None] | None = None,
) -> Iterator[None]:
  """Within the block this process alone holds the lock file `path`.

  A missing folder is made.

  Args:
    path: of the lock file.
    what: is done, for others to read.
    advice: ends the message of the error: what is held, and what to do.
    patience: seconds to wait for another holder.
    waiting: called once with the holder that is waited for.

  Raises:
    LockError: it is held already, in another process or in this one.
  """
  path = pathlib.Path(path).absolute()
  mine = _me(what)
  deadline = time.monotonic() + patience
  while True:
    _make(path.parent)
    try:
      _acquire(path, mine)
      break
    # Another start removed the empty folder that it had made.
    except FileNotFoundError:
      continue
    except _HeldError as e:
      if time.monotonic() >= deadline:
        raise LockError(_refusal(path, e.holder, advice)) from None
      if waiting:
        waiting(e.holder)
        waiting = None
      time.sleep(0.1)
  _sweep(path)
  _heart.add(path, mine.token)
  try:
    yield
  finally:
    _heart.remove(path)
    # A fork of the holder is not the holder.
    if os.getpid() == mine.pid:
      _release(path, mine)


def _refusal(path: pathlib.Path, holder: Holder, advice: str) -> str:
  seen = ""
  if holder.machine != _machine():
    seen = (
      f" (last sign of life {_age(path):.0f} s ago; after {STALE_AFTER:.0f} s its place is free)"
    )
  return f"{holder} is at work on {advice}{seen}"


def _acquire(path: pathlib.Path, mine: Holder) -> None:
  """Makes the lock, or replaces a dead holder's. Raises _HeldError where the holder lives."""
  while not _create(path, mine):
    holder = _read(path)
    # Released at this moment.
    if holder is None:
      continue
    if _lives(path, holder):
      raise _HeldError(holder)
    right = path.with_name(f"{path.name}.{holder.token}")
    _acquire(right, mine)
    try:
      # Another process may have replaced the lock before this one had the right to.
      current = _read(path)
      if current is not None and current.token == holder.token:
        os.replace(_scratch(path, mine), path)
        return
    finally:
      _release(right, mine)


def _create(path: pathlib.Path, mine: Holder) -> bool:
  """Whether the lock was free, and is now ours."""
  scratch = _scratch(path, mine)
  try:
    os.link(scratch, path)
  # Held; or ours all the same, where a network file system repeated the request.
  except FileExistsError:
    pass
  # A file system without hard links.
  except OSError:
    try:
      with open(path, "xb") as file:
        file.write(scratch.read_bytes())
    except FileExistsError:
      pass
  scratch.unlink()
  current = _read(path)
  return current is not None and current.token == mine.token


def _scratch(path: pathlib.Path, mine: Holder) -> pathlib.Path:
  scratch = path.with_name(f"{path.name}.{mine.token}.{secrets.token_hex(4)}")
  try:
    scratch.write_text(json.dumps(dataclasses.asdict(mine)))
  except OSError as e:
    with contextlib.suppress(OSError):
      scratch.unlink()
    # A full disk is reported without a name.
    e.filename = e.filename or str(path)
    raise
  return scratch


def _release(path: pathlib.Path, mine: Holder) -> None:
  # A folder that is gone holds no lock.
  with contextlib.suppress(OSError):
    current = _read(path)
    if current is not None and current.token == mine.token:
      path.unlink()


def _read(path: pathlib.Path) -> Holder | None:
  """The holder, without a number where the lock is being written; None where it is free."""
  try:
    text = path.read_text()
  except FileNotFoundError:
    return None
  try:
    return Holder(**json.loads(text))
  except (ValueError, TypeError):
    return Holder(
      what="a program",
      host=_UNKNOWN,
      machine="",
      pid=0,
      started="",
      since="an unknown time",
      token=_UNKNOWN,
    )


def _lives(path: pathlib.Path, holder: Holder) -> bool:
  if holder.machine == _machine():
    started = _started(holder.pid)
    if started != _UNKNOWN:
      return started is not None and started == holder.started
  return _age(path) < STALE_AFTER


def _age(path: pathlib.Path) -> float:
  """Seconds since the lock was renewed, both moments as its file system tells the time."""
  now = path.with_name(f"{path.name}.now.{secrets.token_hex(4)}")
  now.touch()
  try:
    # Opening makes a network file system look again.
    with open(path, "rb") as file:
      return now.stat().st_mtime - os.fstat(file.fileno()).st_mtime
  except FileNotFoundError:
    return 0.0
  finally:
    now.unlink()


def _sweep(path: pathlib.Path) -> None:
  """Removes what killed processes left beside a lock that we hold."""
  for leftover in path.parent.glob(f"{path.name}.*"):
    with contextlib.suppress(OSError):
      if _age(leftover) > STALE_AFTER:
        leftover.unlink()


def _me(what: str) -> Holder:
  now = time.strftime("%Y-%m-%d %H:%M:%S")
  return Holder(
    what=what,
    host=socket.gethostname(),
    machine=_machine(),
    pid=os.getpid(),
    started=_started(os.getpid()) or "",
    since=now,
    token=secrets.token_hex(8),
  )


@functools.cache
def _machine() -> str:
  """Tells boots of machines and their containers apart; else the host's name."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return socket.gethostname()


def _started(pid: int) -> str | None:
  """When a process of this machine started; None where there is none, or a zombie."""
  try:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    state, start_time = fields[0], fields[19]
    if state in "ZX":
      return None
    return start_time
  except (FileNotFoundError, ProcessLookupError):
    pass
  # There is none, or the system does not show it: it has no /proc, or hides other users' processes.
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass
  return _UNKNOWN


def _make(folder: pathlib.Path) -> None:
  """Makes a folder and its parents. Raises LockError where that cannot be."""
  _refuse_file(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise LockError(
      f"{folder}: cannot be made ({e.strerror}); check the permissions of {folder.parent}, or "
      "choose another --workdir"
    ) from e


def _refuse_file(folder: pathlib.Path) -> None:
  for path in (folder, *folder.parents):
    if path.is_file():
      raise LockError(f"{path}: is a file; expected a folder, choose another --workdir")


@contextlib.contextmanager
def _made(folder: pathlib.Path) -> Iterator[None]:
  """Makes a folder; afterwards removes what it made and is empty."""
  with empty_folders_removed(folder):
    _make(folder)
    yield


@contextlib.contextmanager
def empty_folders_removed(folder: pathlib.Path) -> Iterator[None]:
  """Afterwards removes a folder and its parents, those that are new and empty."""
  missing = [path for path in (folder, *folder.parents) if not path.exists()]
  try:
    yield
  finally:
    with contextlib.suppress(OSError):
      for path in missing:
        path.rmdir()


class _Heart:
  """Renews the locks of this process in a thread, and ends the process when it has lost one."""

  def __init__(self):
    self._held: dict[pathlib.Path, str] = {}
    self._change = threading.Lock()
    self._thread: threading.Thread | None = None
    self._pid = 0

  def add(self, path: pathlib.Path, token: str) -> None:
    with self._change:
      self._held[path] = token
      # A fork has no threads.
      if self._thread is None or self._pid != os.getpid():
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._beat, name="locks", daemon=True)
        self._thread.start()

  def remove(self, path: pathlib.Path) -> None:
    with self._change:
      self._held.pop(path, None)

  def _beat(self) -> None:
    while True:
      time.sleep(RENEWED_EVERY)
      with self._change:
        for path, token in self._held.items():
          # A file system that does not answer may answer the next time.
          with contextlib.suppress(OSError):
            self._renew(path, token)

  def _renew(self, path: pathlib.Path, token: str) -> None:
    current = _read(path)
    if current is not None and current.token != token:
      print(
        f"synthjax: {path}: this process did not renew its lock for {STALE_AFTER:.0f} s, and "
        f"{current} has taken it over; this run ends at once so that two do not write",
        file=sys.stderr,
        flush=True,
      )
      os._exit(1)
    os.utime(path)


_heart = _Heart()
