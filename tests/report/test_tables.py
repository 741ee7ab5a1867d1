import json

from synthjax.report.tables import lower_bounds, table
from synthjax.scaling.bootstrap import resample
from synthjax.scaling.multiples import analyse
from synthjax.scaling.noise import Bootstrap
from synthjax.scaling.paired import differences
from tests.scaling.simulated import FEW, flat, point, study


def test_the_table_has_an_aligned_row_a_cell():
  efficiency = analyse(resample(study(0, {"sft": 1, "rft": 2}, sizes=(128, 512)), FEW))
  lines = table(efficiency).split("\n")
  names = [line.split()[:2] for line in lines[1:5]]
  assert names == [["sft", "128"], ["sft", "512"], ["rft", "128"], ["rft", "512"]]
  assert str(efficiency.points[2].multiple) in lines[3]
  assert len({len(line) for line in lines[:5]}) == 1


def test_the_verdict_on_controls_is_a_line_and_says_that_comparisons_are_counted():
  runs = flat("sft", {128: 0.4, 256: 0.3, 512: 0.2})
  runs += flat("step", {128: 0.22}) + flat("rft", {128: 0.39})
  efficiency = analyse(resample(runs, Bootstrap()))
  better = lower_bounds(efficiency, ["step"], ["rft"])
  assert better[0] == "step is worth more than every control at N = 128"
  assert better[1].startswith("  more than rft: at N = 128 (> ")
  assert better[1].endswith("times), of 1 sizes")
  assert "shared by all sizes and controls" in better[-1]
  worse = lower_bounds(efficiency, ["rft"], ["step"])
  assert worse[:2] == [
    "rft is not shown to be worth more than every control at any N",
    "  not shown to be more than step",
  ]


def test_where_nobody_answers_anything_multiples_are_undefined_and_accuracies_have_an_interval():
  runs = flat("sft", {32: 1.0, 64: 1.0}, count=50) + flat("rft", {32: 1.0}, count=50)
  efficiency = analyse(resample(runs, FEW))
  assert not point(efficiency, "rft", 32).multiple.defined
  lines = table(efficiency).split("\n")
  assert lines[1].split()[:8] == ["sft", "32", "1", "0.0", "(0.0", "to", "7.1)", "1"]
  assert lines[3].split()[:8] == ["rft", "32", "1", "0.0", "(0.0", "to", "7.1)", "undefined"]
  assert lines[3].split()[-1] == "undefined"
  assert any(note.startswith("no correct answer in sft at N=32") for note in efficiency.notes)
  not_shown = "rft is not shown to be worth more than every control at any N"
  assert lower_bounds(efficiency, ["rft"], ["sft"])[0] == not_shown
  parsed = json.loads(json.dumps(efficiency.to_json(), allow_nan=False))
  assert parsed["points"][2]["multiple"]["value"] is None
  (gain,) = differences(runs, "sft", "rft", FEW)
  assert str(gain) == "N=32: rft - sft = +0.0 points, 95 % interval -7.1 to +7.1"
