import contextlib
import pathlib
import threading
import time
from unittest import mock

import pytest

from synthjax import files, stages


def _stage(folder, inputs, fail=False, force=False):
  said = []

  def work(folder):
    (folder / "part").write_text(
      (folder / "part").read_text() + "x" if (folder / "part").exists() else "x"
    )
    if fail:
      raise RuntimeError("killed")
    return {"parts": len((folder / "part").read_text())}

  return stages.run(folder, inputs, work, force, said.append), said


def test_a_finished_stage_is_skipped_and_an_interrupted_one_goes_on(tmp_path):
  with pytest.raises(RuntimeError, match="killed"):
    _stage(tmp_path / "s", {"a": 1}, fail=True)
  assert _stage(tmp_path / "s", {"a": 1})[0] == {"parts": 2}
  result, said = _stage(tmp_path / "s", {"a": 1})
  assert result == {"parts": 2} and said == ["[s] done before, skipped"]
  manifest = files.read_json(tmp_path / "s/manifest.json")
  assert manifest["config"] == {"a": 1} and manifest["seconds"] >= 0 and manifest["version"]


def test_every_finished_version_is_kept_and_comes_back_with_its_inputs(tmp_path):
  for value in (1, 2, 3):
    _stage(tmp_path / "s", {"a": value})
    (tmp_path / "s/made_of").write_text(str(value))
  for value in (1, 3, 2, 1):
    result, said = _stage(tmp_path / "s", {"a": value})
    assert result == {"parts": 1} and (tmp_path / "s/made_of").read_text() == str(value)
    assert (
      len(said) == 1
      and "taken back" in said[0]
      and "the finished version that was here is kept as" in said[0]
    )
  assert [each.inputs["a"] for each in stages.versions(tmp_path / "s")][0] == 1
  assert {each.inputs["a"] for each in stages.versions(tmp_path / "s")} == {1, 2, 3}
  assert stages.finished(tmp_path / "s", {"a": 2}).folder != tmp_path / "s"
  assert stages.finished(tmp_path / "s", {"a": 4}) is None


def test_what_changed_and_where_the_old_version_lies_is_said_in_one_line(tmp_path):
  _stage(tmp_path / "s", {"train": {"steps": 10, "rate": 0.1}, "seed": 0})
  _, said = _stage(tmp_path / "s", {"train": {"steps": 20, "rate": 0.1}, "seed": 0})
  kept = tmp_path / f"s.{files.value_hash({'train': {'steps': 10, 'rate': 0.1}, 'seed': 0})[:8]}"
  assert (
    said[0]
    == f"[s] begins anew: its inputs changed (train.steps 10 -> 20); the finished version that was here is kept as {kept}"
  )


def test_a_forced_stage_keeps_every_version_that_it_replaces(tmp_path):
  for number in range(3):
    result, said = _stage(tmp_path / "s", {"a": 1}, force=True)
    (tmp_path / "s/number").write_text(str(number))
    assert result == {"parts": 1}
  assert "begins anew: forced" in said[0]
  assert [(each.folder / "number").read_text() for each in stages.versions(tmp_path / "s")] == [
    "2",
    "1",
    "0",
  ]


def test_an_unfinished_version_is_kept_with_its_inputs_and_goes_on_when_they_are_back(tmp_path):
  with pytest.raises(RuntimeError):
    _stage(tmp_path / "s", {"a": 1}, fail=True)
  _stage(tmp_path / "s", {"a": 2})
  assert [(each.inputs, each.result is None) for each in stages.versions(tmp_path / "s")] == [
    ({"a": 2}, False),
    ({"a": 1}, True),
  ]
  result, said = _stage(tmp_path / "s", {"a": 1})
  assert result == {"parts": 2} and "which was begun with these inputs" in said[0]


class _Killed(BaseException):
  pass


@pytest.mark.parametrize("operation", ["rename", "write_json", "mkdir"])
@pytest.mark.parametrize("nth", [0, 1])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("back", [1, 3])
def test_a_kill_at_any_moment_of_a_swap_loses_no_version(tmp_path, operation, nth, after, back):
  """Killed before or after each change on disk, while a version comes back (1) or a new one begins (3)."""
  for value in (1, 2):
    _stage(tmp_path / "s", {"a": value})
    (tmp_path / "s/made_of").write_text(str(value))
  owner, name = {
    "rename": (pathlib.Path, "rename"),
    "write_json": (files, "write_json"),
    "mkdir": (pathlib.Path, "mkdir"),
  }[operation]
  original, calls = getattr(owner, name), []

  def killed(*args, **kwargs):
    calls.append(args)
    if len(calls) == nth + 1 and not after:
      raise _Killed
    found = original(*args, **kwargs)
    if len(calls) == nth + 1:
      raise _Killed
    return found

  with mock.patch.object(owner, name, killed):
    with contextlib.suppress(_Killed):
      _stage(tmp_path / "s", {"a": back})
  for value in (2, 1, 2):
    result, _ = _stage(tmp_path / "s", {"a": value})
    assert result == {"parts": 1} and (tmp_path / "s/made_of").read_text() == str(value)


def test_two_starts_that_come_to_one_stage_work_once(tmp_path):
  begun, works, said = threading.Event(), [], []

  def work(folder):
    works.append(folder)
    begun.set()
    time.sleep(0.3)
    return {"made": 1}

  first = threading.Thread(target=stages.run, args=(tmp_path / "s", {}, work, False, said.append))
  first.start()
  begun.wait()
  assert stages.run(tmp_path / "s", {}, work, False, said.append) == {"made": 1}
  first.join()
  assert (
    len(works) == 1
    and "[s] waits for stage s on host" in said[1]
    and said[-1] == "[s] done before, skipped"
  )


def test_a_finished_stage_that_lost_what_it_made_goes_on(tmp_path):
  _stage(tmp_path / "s", {"a": 1})
  lost = lambda each: (each.folder / "made").exists()
  said, work = [], lambda folder: {"files": [(folder / name).touch() or name for name in ("made",)]}
  assert stages.finished(tmp_path / "s", {"a": 1}, lost) is None
  for expected in (
    "was finished, but part of what it made is damaged: it goes on",
    "done before, skipped",
  ):
    assert stages.run(tmp_path / "s", {"a": 1}, work, say=said.append, whole=lost) == {
      "files": ["made"]
    }
    assert said[-1].endswith(expected) or said[-2].endswith(expected)
  assert (tmp_path / "s/part").read_text() == "x"


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
  assert (folder / "half").exists() and stages.version(folder).result is None
