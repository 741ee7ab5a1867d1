import contextlib
import pathlib
import threading
import time
from typing import NamedTuple
from unittest import mock

import pytest

from synthjax import files, stages


class _Outcome(NamedTuple):
  result: dict
  lines: list[str]  # printed


def _stage(folder, inputs, fail=False, force=False):
  """Runs a stage that adds an x to a file and returns how many it then holds."""
  lines = []

  def work(folder):
    with open(folder / "part", "a") as part:
      part.write("x")
    if fail:
      raise RuntimeError("killed")
    return {"parts": len((folder / "part").read_text())}

  return _Outcome(stages.run(folder, inputs, work, force, lines.append), lines)


def _labelled(folder, value):
  """Runs the stage with an input and puts a label into its folder."""
  _stage(folder, {"a": value})
  (folder / "label").write_text(str(value))


def test_a_finished_stage_is_skipped_and_an_interrupted_one_is_resumed(tmp_path):
  with pytest.raises(RuntimeError, match="killed"):
    _stage(tmp_path / "s", {"a": 1}, fail=True)
  assert _stage(tmp_path / "s", {"a": 1}).result == {"parts": 2}
  again = _stage(tmp_path / "s", {"a": 1})
  assert again.result == {"parts": 2}
  assert again.lines == ["[s] done before, skipped"]
  manifest = files.read_json(tmp_path / "s/manifest.json")
  assert manifest["config"] == {"a": 1}
  assert manifest["seconds"] >= 0
  assert manifest["version"]


def test_every_finished_version_is_kept_and_comes_back_with_its_inputs(tmp_path):
  folder = tmp_path / "s"
  for value in (1, 2, 3):
    _labelled(folder, value)
  for value in (1, 3, 2, 1):
    outcome = _stage(folder, {"a": value})
    assert outcome.result == {"parts": 1}
    assert (folder / "label").read_text() == str(value)
    (line,) = outcome.lines
    assert "taken back" in line
    assert "the finished version that was here is kept as" in line
  values = [version.inputs["a"] for version in stages.versions(folder)]
  assert values[0] == 1
  assert sorted(values) == [1, 2, 3]
  assert stages.finished(folder, {"a": 2}).folder != folder
  assert stages.finished(folder, {"a": 4}) is None


def test_what_changed_and_where_the_old_version_went_is_one_line(tmp_path):
  before = {"train": {"steps": 10, "rate": 0.1}, "seed": 0}
  _stage(tmp_path / "s", before)
  outcome = _stage(tmp_path / "s", {"train": {"steps": 20, "rate": 0.1}, "seed": 0})
  kept = tmp_path / f"s.{files.value_hash(before)[:8]}"
  assert outcome.lines[0] == (
    "[s] begins anew: its inputs changed (train.steps 10 -> 20); "
    f"the finished version that was here is kept as {kept}"
  )


def test_a_forced_stage_keeps_every_version_that_it_replaces(tmp_path):
  for number in range(3):
    outcome = _stage(tmp_path / "s", {"a": 1}, force=True)
    (tmp_path / "s/number").write_text(str(number))
    assert outcome.result == {"parts": 1}
  assert "begins anew: forced" in outcome.lines[0]
  folders = [version.folder for version in stages.versions(tmp_path / "s")]
  assert [(folder / "number").read_text() for folder in folders] == ["2", "1", "0"]


def test_an_unfinished_version_is_kept_and_resumed_when_its_inputs_are_back(tmp_path):
  with pytest.raises(RuntimeError):
    _stage(tmp_path / "s", {"a": 1}, fail=True)
  _stage(tmp_path / "s", {"a": 2})
  current, kept = stages.versions(tmp_path / "s")
  assert current.inputs == {"a": 2}
  assert current.result is not None
  assert kept.inputs == {"a": 1}
  assert kept.result is None
  outcome = _stage(tmp_path / "s", {"a": 1})
  assert outcome.result == {"parts": 2}
  assert "which was begun with these inputs" in outcome.lines[0]


class _Killed(BaseException):
  pass


_OPERATIONS = {
  "rename": (pathlib.Path, "rename"),
  "write_json": (files, "write_json"),
  "mkdir": (pathlib.Path, "mkdir"),
}


@pytest.mark.parametrize("operation", list(_OPERATIONS))
@pytest.mark.parametrize("nth", [0, 1])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("back", [1, 3])
def test_a_kill_at_any_moment_of_a_swap_loses_no_version(tmp_path, operation, nth, after, back):
  """The kill comes before or after each change on disk.

  Meanwhile a version comes back (back=1) or a new one begins (back=3).
  """
  folder = tmp_path / "s"
  for value in (1, 2):
    _labelled(folder, value)
  owner, name = _OPERATIONS[operation]
  original = getattr(owner, name)
  calls = []

  def killed(*args, **kwargs):
    calls.append(args)
    is_nth = len(calls) == nth + 1
    if is_nth and not after:
      raise _Killed
    returned = original(*args, **kwargs)
    if is_nth:
      raise _Killed
    return returned

  with mock.patch.object(owner, name, killed), contextlib.suppress(_Killed):
    _stage(folder, {"a": back})
  for value in (2, 1, 2):
    assert _stage(folder, {"a": value}).result == {"parts": 1}
    assert (folder / "label").read_text() == str(value)


def test_of_two_starts_that_reach_one_stage_one_works(tmp_path):
  begun = threading.Event()
  works, lines = [], []

  def work(folder):
    works.append(folder)
    begun.set()
    time.sleep(0.3)
    return {"made": 1}

  arguments = (tmp_path / "s", {}, work, False, lines.append)
  first = threading.Thread(target=stages.run, args=arguments)
  first.start()
  begun.wait()
  assert stages.run(*arguments) == {"made": 1}
  first.join()
  assert len(works) == 1
  assert "[s] waits for stage s on host" in lines[1]
  assert lines[-1] == "[s] done before, skipped"


def test_a_finished_stage_that_lost_what_it_made_is_resumed(tmp_path):
  folder = tmp_path / "s"
  _stage(folder, {"a": 1})
  lines = []

  def is_whole(version):
    return (version.folder / "made").exists()

  def work(folder):
    (folder / "made").touch()
    return {"files": ["made"]}

  def run():
    lines.clear()
    return stages.run(folder, {"a": 1}, work, say=lines.append, whole=is_whole)

  assert stages.finished(folder, {"a": 1}, is_whole) is None
  assert run() == {"files": ["made"]}
  assert lines[0].endswith("was finished, but part of what it made is damaged: it goes on")
  assert run() == {"files": ["made"]}
  assert lines == ["[s] done before, skipped"]
  assert (folder / "part").read_text() == "x"


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
  (tmp_path / "s").mkdir()
  (tmp_path / "s/thesis.txt").write_text("mine")
  with pytest.raises(files.DataError, match="holds files that no stage of synthjax made"):
    _stage(tmp_path / "s", {})
  assert (tmp_path / "s/thesis.txt").read_text() == "mine"


def test_a_refused_stage_leaves_nothing_and_one_that_made_something_keeps_it(tmp_path):
  folder = tmp_path / "run" / "stage"

  def refused(folder):
    raise files.DataError("no such file")

  with pytest.raises(files.DataError):
    stages.run(folder, 1, refused)
  assert not list(tmp_path.iterdir())

  def half(folder):
    (folder / "half").touch()
    raise files.DataError("no such file")

  with pytest.raises(files.DataError):
    stages.run(folder, 1, half)
  assert (folder / "half").exists()
  assert stages.version(folder).result is None
