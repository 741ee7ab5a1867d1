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


def study(multiples, sizes=(128, 256, 512, 1024)):
  random = np.random.default_rng(0)
  return analyse(
    resample(
      [
        Run(
          arm,
          n,
          seed,
          (random.random(600) > 1.2 * (multiple * n) ** -0.25).astype(float),
          100.0 * n,
          0.0,
          1e9 * n,
        )
        for arm, multiple in multiples.items()
        for n in sizes
        for seed in range(2)
      ],
      Bootstrap(200),
    )
  )


@pytest.fixture(scope="module")
def found():
  return study({"sft": 1, "rft": 2, "step_dpo.branch": 8})


def texts(path):
  return " | ".join(
    "".join(node.itertext())
    for node in xml.etree.ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
  )


def test_the_figure_names_its_axes_with_units_and_every_arm(found, tmp_path):
  png, svg = plots.efficiency_figure(found, tmp_path / "figures/multiples")
  assert (png.name, svg.name) == ("multiples.png", "multiples.svg") and len(
    list(png.parent.iterdir())
  ) == 2
  said = texts(svg)
  for words in (
    "training problems N",
    "test error (%), with 95 % interval",
    "worth in SFT problems, with 95 % interval",
    "1,024",
    "8x",
    "sft",
    "rft",
    "step_dpo.branch",
    "end of the SFT curve",
  ):
    assert words in said
  image = matplotlib.image.imread(png)
  assert image.shape[1] > 1500 and len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 50


def test_no_error_is_above_100_percent_on_the_axis_and_undefined_multiples_are_not_drawn(tmp_path):
  nobody = analyse(
    resample(
      [
        Run(arm, n, 0, np.zeros(50), 100.0 * n, 0.0, 1e9 * n)
        for arm in ("sft", "rft")
        for n in (32, 64)
      ],
      Bootstrap(200),
    )
  )
  said = texts(plots.efficiency_figure(nobody, tmp_path / "figure")[1]).split(" | ")
  ticks = [float(text) for text in said if text.replace(".", "").isdigit()]
  assert 100.0 in ticks and max(tick for tick in ticks if tick not in (32, 64)) == 100.0
  assert "rft" in said


def test_the_law_is_drawn_only_where_it_is_supported(found, tmp_path):
  supported, unsupported = (dataclasses.replace(found.law, supported=yes) for yes in (True, False))
  said = [
    texts(plots.efficiency_figure(dataclasses.replace(found, law=law), tmp_path / "figure")[1])
    for law in (supported, unsupported, error_law.Law(False, "2 sizes", ()))
  ]
  assert ["law:" in words for words in said] == [True, False, False]
  assert ["not supported" in words for words in said] == [False, True, True]


def test_a_control_is_a_third_panel_on_the_same_scale(found, tmp_path):
  control = study({"sft": 1, "rft": 1, "step_dpo.branch": 0.5})
  alone, beside = (
    plots.efficiency_figure(found, tmp_path / name, of)
    for name, of in (("two", None), ("three", control))
  )
  assert "Negative control" not in texts(alone[1]) and "Negative control" in texts(beside[1])
  assert texts(beside[1]).count("0.5x") == 2


def test_the_same_study_gives_the_same_bytes(found, tmp_path):
  one, other = (plots.efficiency_figure(found, tmp_path / name) for name in ("one", "other"))
  assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_bounds_and_values_are_drawn_apart(found, tmp_path):
  def drawn(study):
    figure = plots.efficiency_figure(study, tmp_path / "figure")[1].read_text()
    return figure.count('id="patch_'), figure.count(
      "fill: #ffffff; stroke: "
    )  # arrows, hollow markers

  beyond = [p for p in found.points if p.multiple.beyond == "above"]
  assert beyond
  inside = tuple(
    dataclasses.replace(
      p, multiple=dataclasses.replace(p.multiple, beyond="", low_beyond="", high_beyond="")
    )
    for p in found.points
  )
  arrows, hollow = np.subtract(drawn(found), drawn(dataclasses.replace(found, points=inside)))
  assert arrows > 0 and hollow == len(beyond)


def test_a_failed_drawing_leaves_the_old_figure(found, tmp_path, monkeypatch):
  png, _ = plots.efficiency_figure(found, tmp_path / "figure")
  before = png.read_bytes()

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space left"):
    plots.efficiency_figure(study({"sft": 1, "rft": 3}), tmp_path / "figure")
  assert png.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == [
    "figure.png",
    "figure.svg",
  ]


def test_matplotlib_is_imported_only_when_something_is_drawn():
  code = "import sys; from synthjax.report import plots; print('matplotlib' in sys.modules)"
  found = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)
  assert found.stdout.split() == [b"False"]
