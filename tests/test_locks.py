"""Locks: who is refused, whose lock is taken over, and that of many takers one wins."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from synthjax import locks

ROOT = pathlib.Path(__file__).parents[1]
_HOLD = """
import pathlib, sys, time
from synthjax import locks
with locks.lock(pathlib.Path(sys.argv[1]), "a test", "something: wait"):
  print("held", flush=True)
  time.sleep(60)
"""


def _process(code, *arguments, **options):
  return subprocess.Popen(
    [sys.executable, "-c", code, *map(str, arguments)],
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    **options,
  )


def _lock(path, **options):
  return locks.lock(path, "another test", "the folder: wait for it", **options)


def _write(path, age=0.0, **changes):
  """A lock of somebody else, last renewed that many seconds ago."""
  holder = dataclasses.replace(locks._me("work"), token="0123", **changes)
  path.write_text(json.dumps(dataclasses.asdict(holder)))
  os.utime(path, (time.time() - age,) * 2)


def test_a_second_process_is_told_who_is_at_work_and_a_killed_ones_lock_is_free_at_once(tmp_path):
  holder = _process(_HOLD, tmp_path / "lock")
  assert holder.stdout.readline() == "held\n"
  begin = time.monotonic()
  message = (
    rf"a test on host \S+, process {holder.pid}, since \S+ \S+ "
    "is at work on the folder: wait for it"
  )
  with pytest.raises(locks.LockError, match=message), _lock(tmp_path / "lock"):
    pass
  holder.kill()
  holder.wait()
  with _lock(tmp_path / "lock"):
    pass
  assert time.monotonic() - begin < 1.0
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("leave", [lambda: None, lambda: sys.exit(1), lambda: 1 / 0])
def test_a_lock_is_free_again_however_its_block_ends(tmp_path, leave):
  with contextlib.suppress(SystemExit, ZeroDivisionError), _lock(tmp_path / "lock"):
    assert (tmp_path / "lock").exists()
    # The same process is no exception.
    with pytest.raises(locks.LockError), _lock(tmp_path / "lock"):
      pass
    leave()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("age", "changes"),
  [
    (0.0, {"started": "1"}),  # another process has its number by now
    (0.0, {"pid": 1 << 23}),  # no process has it
    (locks.STALE_AFTER + 5, {"machine": "another"}),
  ],
)
def test_the_lock_of_a_dead_holder_is_taken_over(tmp_path, age, changes):
  _write(tmp_path / "lock", age, **changes)
  with _lock(tmp_path / "lock"):
    assert json.loads((tmp_path / "lock").read_text())["what"] == "another test"
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("age", "changes"),
  [
    (10 * locks.STALE_AFTER, {}),  # of this machine, alive and asleep
    (locks.STALE_AFTER - 5, {"machine": "another"}),
  ],
)
def test_the_lock_of_a_living_holder_is_not_taken_over(tmp_path, age, changes):
  _write(tmp_path / "lock", age, **changes)
  with pytest.raises(locks.LockError, match="work on host") as refusal, _lock(tmp_path / "lock"):
    pass
  # On its own machine the holder is known to live.
  age_is_shown = "last sign of life 55 s ago; after 60 s its place is free" in str(refusal.value)
  assert age_is_shown == ("machine" in changes)
  assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_file_that_is_not_yet_a_lock_is_one_until_it_is_old(tmp_path):
  (tmp_path / "lock").write_text("")
  with pytest.raises(locks.LockError), _lock(tmp_path / "lock"):
    pass
  os.utime(tmp_path / "lock", (time.time() - locks.STALE_AFTER - 5,) * 2)
  with _lock(tmp_path / "lock"):
    pass


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_take_over_at_once_one_works_at_a_time(tmp_path, monkeypatch, links):
  """Eight threads take locks of dead holders.

  Now and then the right to take over is itself held by a dead process.
  """

  def no_links(*_):
    raise PermissionError("no links here")

  if not links:
    monkeypatch.setattr(os, "link", no_links)
  path = tmp_path / "lock"
  inside, most = [], []
  won = [0] * 60
  barrier = threading.Barrier(8)

  def take():
    for number in range(len(won)):
      # One of the threads prepares the round.
      if barrier.wait() == 0:
        _write(path, pid=1 << 23)
        if number % 2:
          _write(tmp_path / "lock.0123", pid=1 << 23)
      barrier.wait()
      with contextlib.suppress(locks.LockError), _lock(path):
        inside.append(number)
        most.append(len(inside))
        won[number] += 1
        time.sleep(0.002)
        inside.pop()

  threads = [threading.Thread(target=take) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert max(most) == 1
  assert min(won) >= 1
  left = {path.name for path in tmp_path.iterdir()}
  assert left <= {"lock.0123"}


_RACE = """
import os, pathlib, sys, time
from synthjax import locks
folder = pathlib.Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
  while not (folder / f"go{number}").exists():
    time.sleep(0.0002)
  try:
    with locks.lock(folder / "lock", "race", "it"):
      os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # fails where two are inside
      time.sleep(0.005)
      os.unlink(folder / "inside")
      print(number, flush=True)
  except locks.LockError:
    pass
  (folder / f"done{number}.{os.getpid()}").touch()
"""


def test_of_four_processes_that_take_over_at_once_one_works_at_a_time(tmp_path):
  runs = [_process(_RACE, tmp_path, stdin=subprocess.PIPE) for _ in range(4)]
  for run in runs:
    assert run.stdout.readline() == "ready\n"
    run.stdin.write("\n")
    run.stdin.flush()
  for number in range(40):
    _write(tmp_path / "lock", pid=1 << 23)
    (tmp_path / f"go{number}").touch()
    while len(list(tmp_path.glob(f"done{number}.*"))) < 4:
      if any(run.poll() is not None for run in runs):
        break
      time.sleep(0.001)
  won = set()
  for run in runs:
    output, _ = run.communicate(timeout=60)
    won.update(map(int, output.split()))
  assert [run.returncode for run in runs] == [0] * 4
  assert won == set(range(40))


def test_a_lock_is_renewed_while_it_is_held_and_its_loss_ends_the_process(tmp_path):
  code = _HOLD.replace("with locks", "locks.RENEWED_EVERY = 0.05\nwith locks")
  holder = _process(code, tmp_path / "lock", stderr=subprocess.PIPE)
  assert holder.stdout.readline() == "held\n"
  os.utime(tmp_path / "lock", (0, 0))
  while (tmp_path / "lock").stat().st_mtime < time.time() - 10:
    assert holder.poll() is None
    time.sleep(0.01)
  _write(tmp_path / "new", host="elsewhere", machine="another")
  (tmp_path / "new").replace(tmp_path / "lock")
  assert holder.wait(30) == 1
  assert "work on host elsewhere" in holder.stderr.read()


def test_a_folder_that_was_made_for_its_lock_is_removed_when_nothing_came_into_it(tmp_path):
  with locks.folder_lock(tmp_path / "a/b", "test"):
    assert (tmp_path / "a/b/.lock").exists()
  assert not list(tmp_path.iterdir())
  with locks.folder_lock(tmp_path / "a/b", "test"):
    (tmp_path / "a/b/result").touch()
  assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["result"]


def test_who_is_patient_waits_for_the_holder(tmp_path):
  waited = []

  def hold():
    with _lock(tmp_path / "lock"):
      time.sleep(0.3)

  thread = threading.Thread(target=hold)
  thread.start()
  while not (tmp_path / "lock").exists():
    time.sleep(0.001)
  with _lock(tmp_path / "lock", patience=30.0, waiting=waited.append):
    assert not thread.is_alive() or waited
  thread.join()
  assert len(waited) == 1
