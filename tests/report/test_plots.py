import dataclasses
import os
import subprocess
import sys
import xml.etree.ElementTree

import matplotlib.image
import numpy as np
import pytest

from synthjax.report import plots
from synthjax.scaling import error_law
from synthjax.scaling.bootstrap import Run, resample
from synthjax.scaling.multiples import analyse
from synthjax.scaling.noise import Bootstrap

FEW = Bootstrap(replicates=200)


def run_of(arm, problems, seed, accuracy_P):
  return Run(
    arm=arm,
    problems=problems,
    seed=seed,
    accuracy_P=accuracy_P.astype(float),
    tokens_trained=100.0 * problems,
    tokens_sampled=0.0,
    flops=1e9 * problems,
  )


def study(multiples, sizes=(128, 256, 512, 1024)):
  """Arms with these multiples over a power law."""
  random = np.random.default_rng(0)
  runs = []
  for arm, multiple in multiples.items():
    for size in sizes:
      error = 1.2 * (multiple * size) ** -0.25
      for seed in range(2):
        runs.append(run_of(arm, size, seed, random.random(600) > error))
  return analyse(resample(runs, FEW))


@pytest.fixture(scope="module")
def efficiency():
  return study({"sft": 1, "rft": 2, "step_dpo.branch": 8})


def drawn_texts(study, path, **options):
  """The texts of a study's figure."""
  _, svg = plots.efficiency_figure(study, path, **options)
  nodes = xml.etree.ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
  return ["".join(node.itertext()) for node in nodes]


def test_the_figure_is_a_png_and_an_svg(efficiency, tmp_path):
  png, svg = plots.efficiency_figure(efficiency, tmp_path / "figures/multiples")
  names = sorted(path.name for path in (tmp_path / "figures").iterdir())
  assert names == ["multiples.png", "multiples.svg"] == [png.name, svg.name]
  image = matplotlib.image.imread(png)
  assert image.shape[1] > 1500
  colours = np.unique(image.reshape(-1, image.shape[-1]), axis=0)
  assert len(colours) > 50


def test_the_figure_names_its_axes_with_units_and_every_arm(efficiency, tmp_path):
  text = " | ".join(drawn_texts(efficiency, tmp_path / "figure"))
  assert "training problems N" in text
  assert "test error (%), with 95 % interval" in text
  assert "worth in SFT problems, with 95 % interval" in text
  assert "end of the SFT curve" in text
  for tick in ("1,024", "8x"):
    assert tick in text
  for arm in ("sft", "rft", "step_dpo.branch"):
    assert arm in text


def test_no_error_is_above_100_percent_on_the_axis_and_undefined_multiples_are_not_drawn(tmp_path):
  runs = []
  for arm in ("sft", "rft"):
    for size in (32, 64):
      runs.append(run_of(arm, size, 0, np.zeros(50)))
  texts = drawn_texts(analyse(resample(runs, FEW)), tmp_path / "figure")
  numbers = [float(text) for text in texts if text.replace(".", "").isdigit()]
  errors = [number for number in numbers if number not in (32, 64)]
  assert max(errors) == 100.0
  assert "rft" in texts


@pytest.mark.parametrize("supported", [True, False])
def test_the_law_is_drawn_only_where_it_is_supported(efficiency, tmp_path, supported):
  law = dataclasses.replace(efficiency.law, supported=supported)
  text = " | ".join(drawn_texts(dataclasses.replace(efficiency, law=law), tmp_path / "figure"))
  assert ("law:" in text) == supported
  assert ("not supported" in text) == (not supported)


def test_a_law_that_was_not_fitted_is_not_drawn(efficiency, tmp_path):
  law = error_law.Law(supported=False, reason="2 sizes", local_exponents=())
  text = " | ".join(drawn_texts(dataclasses.replace(efficiency, law=law), tmp_path / "figure"))
  assert "law:" not in text
  assert "not supported" in text


def test_a_control_is_a_third_panel_on_the_same_scale(efficiency, tmp_path):
  control = study({"sft": 1, "rft": 1, "step_dpo.branch": 0.5})
  assert "Negative control" not in drawn_texts(efficiency, tmp_path / "two")
  texts = drawn_texts(efficiency, tmp_path / "three", control=control)
  assert "Negative control" in texts
  # A tick of both panels.
  assert texts.count("0.5x") == 2


def test_the_same_study_gives_the_same_bytes(efficiency, tmp_path):
  one = plots.efficiency_figure(efficiency, tmp_path / "one")
  other = plots.efficiency_figure(efficiency, tmp_path / "other")
  assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def within_the_range(point):
  multiple = dataclasses.replace(point.multiple, beyond="", low_beyond="", high_beyond="")
  return dataclasses.replace(point, multiple=multiple)


def test_bounds_and_values_are_drawn_differently(efficiency, tmp_path):
  def marks_of_bounds(study):
    _, svg = plots.efficiency_figure(study, tmp_path / "figure")
    text = svg.read_text()
    arrows = text.count('id="patch_')
    hollow = text.count("fill: #ffffff; stroke: ")
    return np.array([arrows, hollow])

  beyond = [point for point in efficiency.points if point.multiple.beyond == "above"]
  assert beyond
  points = tuple(within_the_range(point) for point in efficiency.points)
  without_bounds = dataclasses.replace(efficiency, points=points)
  arrows, hollow = marks_of_bounds(efficiency) - marks_of_bounds(without_bounds)
  assert arrows > 0
  assert hollow == len(beyond)


def test_a_failed_drawing_leaves_the_old_figure(efficiency, tmp_path, monkeypatch):
  png, _ = plots.efficiency_figure(efficiency, tmp_path / "figure")
  before = png.read_bytes()

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space left"):
    plots.efficiency_figure(study({"sft": 1, "rft": 3}), tmp_path / "figure")
  assert png.read_bytes() == before
  assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "figure.svg"]


def test_matplotlib_is_imported_only_when_something_is_drawn():
  code = "import sys; from synthjax.report import plots; print('matplotlib' in sys.modules)"
  command = [sys.executable, "-c", code]
  process = subprocess.run(command, check=True, timeout=120, capture_output=True)
  assert process.stdout.split() == [b"False"]
