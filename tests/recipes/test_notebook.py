"""docs/study.ipynb on the smoke study: every cell runs, and the results are read back whole."""

import json
import pathlib
import subprocess
import sys

import pytest

from synthjax import files
from synthjax.scaling import stored

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs/study.ipynb"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> pathlib.Path:
  """The work folder of the quickstart's smoke variant."""
  workdir = tmp_path_factory.mktemp("smoke")
  command = [sys.executable, "-m", "synthjax", "run", "--config", "configs/quickstart.py:smoke"]
  subprocess.run([*command, "--workdir", str(workdir)], cwd=ROOT, check=True)
  return workdir


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(study, monkeypatch, capsys):
  monkeypatch.setenv("STUDY", str(study))
  names: dict = {}
  for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
      exec("".join(cell["source"]), names)  # noqa: S102 - our own notebook
  shown = capsys.readouterr().out
  assert (study / "table.txt").read_text() in shown
  assert "step_dpo.branch    N =" in shown
  assert (study / "redrawn.png").stat().st_size > 10_000


@pytest.mark.slow
def test_results_are_read_back_as_they_were_written(study):
  written = files.read_json(study / "results.json")
  for name, value in stored.read(study / "results.json").to_json().items():
    assert value == written[name], name


def test_a_file_that_is_no_study_is_refused(tmp_path):
  files.write_json(tmp_path / "results.json", {"points": []})
  with pytest.raises(files.DataError, match="expected the results.json of a study A"):
    stored.read(tmp_path / "results.json")
