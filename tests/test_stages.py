import pytest

from synthjax import files, stages


def _stage(folder, inputs, fail=False, force=False):
  said = []

  def work(folder):
    (folder / "part").write_text((folder / "part").read_text() + "x" if (folder / "part").exists() else "x")
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


def test_other_inputs_or_force_begin_anew_and_keep_the_old_folder(tmp_path):
  _stage(tmp_path / "s", {"a": 1})
  result, said = _stage(tmp_path / "s", {"a": 2})
  assert result == {"parts": 1} and "its inputs changed; the old one is now" in said[0]
  result, said = _stage(tmp_path / "s", {"a": 2}, force=True)
  assert result == {"parts": 1} and "forced" in said[0]
  assert files.read_json(tmp_path / "s.previous/manifest.json")["config"] == {"a": 2}


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
  (tmp_path / "s").mkdir()
  (tmp_path / "s/thesis.txt").write_text("mine")
  with pytest.raises(files.DataError, match="holds files that no stage of synthjax made"):
    _stage(tmp_path / "s", {})
  assert (tmp_path / "s/thesis.txt").read_text() == "mine"
