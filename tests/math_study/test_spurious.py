import dataclasses

import numpy as np
import pytest

from synthjax import config, files, records
from synthjax.__main__ import main
from synthjax.config.worlds import World
from synthjax.credit.traces import SampledTrace
from synthjax.math_study import spurious
from synthjax.records import StepValue, Verdict
from synthjax.worlds import shop

WORLD = World(leap=0.0, min_events=3, max_events=3)
EXPERIMENT = config.resolve(
  {
    "recipe": "math_rl",
    "world": dataclasses.asdict(WORLD),
    "data": {"task": "world", "test_problems": 2},
    "study": {"samples": 3, "kept": 4},
  }
)
RIGHT, WRONG = Verdict("equal"), Verdict("different")


def _texts(problem):
  """Three operations one by one; two of them fused; one by one, wrong from the second on."""
  start, events, _ = shop.parse(problem.question)
  moves = [e.sign * e.amount for e in events]
  operation = lambda move: f"{'+' if move > 0 else '-'} {abs(move)}"
  totals = [start + sum(moves[:i]) for i in range(4)]
  lines = [f"{totals[i]} {operation(moves[i])} = {totals[i + 1]}" for i in range(3)]
  fused = f"{start} {operation(moves[0])} {operation(moves[1])} = {totals[2]}"
  false = f"{totals[1]} {operation(moves[1])} = {totals[2] + 1}"
  ends = [f"Answer: {totals[3]}", f"Answer: {totals[3] + 1}"]
  wrong = [lines[0], false, f"{totals[2] + 1} {operation(moves[2])} = {totals[3] + 1}", ends[1]]
  return [" ; ".join(trace) for trace in ([*lines, ends[0]], [fused, lines[2], ends[0]], wrong)]


def _drawn(problem, texts):
  return [
    SampledTrace(
      problem.id,
      text,
      tuple((1,) for _ in text.split(" ; ")),
      RIGHT if text.endswith(f" {problem.answer}") else WRONG,
    )
    for text in texts
  ]


def _stage(folder, **result):
  folder.mkdir(parents=True)
  files.write_json(folder / "manifest.json", {"result": result})
  return folder


@pytest.fixture
def workdir(tmp_path):
  """Two seeds of two problems; three samples a problem: clean, fused, wrong.

  The wrong one falls from 0.75 to 0 at its second step.
  """
  for seed in (0, 1):
    cell, world = tmp_path / f"n00002_s{seed}", dataclasses.replace(WORLD, seed=seed)
    drawn = [
      d for problem in shop.problems(world, "train", 2) for d in _drawn(problem, _texts(problem))
    ]
    records.write(_stage(cell / "draw3_sft") / "drawn.jsonl", drawn)
    q = [0.5, 0.75, 0.0, 0.0, 0.0]
    rows = [
      StepValue(
        d.problem_id,
        i,
        step,
        8,
        round(8 * q[step]),
        q[step],
        q[step] - q[step - 1] if step else None,
      )
      for i, d in enumerate(d for d in drawn if not d.verdict.correct)
      for step in range(5)
    ]
    records.write(_stage(cell / "values_sft", traces=2) / "values.jsonl", rows)
    asked = shop.problems(WORLD, "test", 2)
    answers = [{"id": p.id, "responses": [{"text": _texts(p)[1]}]} for p in asked]
    files.write_jsonl(_stage(cell / "evaluate_test_sft") / "responses.jsonl", answers)
    (cell / "draw3_rft").mkdir()  # still at work
  return tmp_path


def test_shares_of_a_folder_that_was_made_by_hand_are_those_that_were_put_in(workdir, capsys):
  found = spurious.report(EXPERIMENT, workdir)
  rows = {row["of"]: row for row in found["steps"]}
  assert set(rows) == {"teacher", "samples of sft", "positives of rft", "test answers of sft"}
  value = lambda of, name: rows[of][name]["value"]
  samples = [value("samples of sft", kind) for kind in spurious.KINDS]
  # Of 4 + 3 + 4 steps a problem: the fused line leaps, and the wrong trace has a wrong second step;
  # the line after it goes on from a total that is not the problem's, and so does its answer.
  assert samples == pytest.approx([(4 + 2 + 1) / 11, 1 / 11, 3 / 11])
  assert [value("teacher", kind) for kind in spurious.KINDS] == [1.0, 0.0, 0.0]
  assert [value("positives of rft", kind) for kind in spurious.KINDS] == pytest.approx(
    [6 / 7, 1 / 7, 0.0]
  )
  assert value("positives of rft", "traces_with_leap") == 0.5 and value(
    "samples of sft", "traces_with_wrong"
  ) == pytest.approx(1 / 3)
  assert (
    value("samples of sft", "attempt"),
    value("samples of sft", "attempt_wrong"),
  ) == pytest.approx((1 / 11, 0.0))
  assert value("test answers of sft", "leap") == pytest.approx(1 / 3)
  (values,) = found["values"]
  assert (values["policy"], values["traces"]) == ("sft", "wrong traces")
  assert values["advantage"]["right"]["value"] == pytest.approx(0.25) and values["advantage"][
    "wrong"
  ]["value"] == pytest.approx(-0.25)
  assert values["advantage"]["leap"]["value"] is None
  assert [values["pits"][kind]["value"] for kind in spurious.KINDS] == [0.0, 0.0, 1.0] and values[
    "pits"
  ]["wrong"]["counted"] == 4
  assert files.read_json(workdir / "spurious.json")["cells"] == ["n00002_s0", "n00002_s1"]
  assert "samples of sft" in (workdir / "spurious.txt").read_text()


def test_the_error_of_a_ratio_is_that_of_resampled_clusters():
  random = np.random.default_rng(0)
  rows = [
    ((0, str(c)), float(hits), float(size))
    for c in range(200)
    for size in [random.integers(1, 6)]
    for hits in [random.binomial(size, random.beta(0.5, 0.5))]
  ]
  found = spurious.ratio(rows)
  above, below = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
  draws = random.integers(0, 200, (4000, 200))
  assert found.value == pytest.approx(above.sum() / below.sum()) and found.counted == below.sum()
  assert found.standard_error == pytest.approx(
    (above[draws].sum(1) / below[draws].sum(1)).std(), rel=0.06
  )
  # The same steps, each a cluster of its own, would seem to be known better than they are.
  apart = spurious.ratio(
    ((0, f"{i} {k}"), float(k < hits), 1.0)
    for i, (_, hits, size) in enumerate(rows)
    for k in range(int(size))
  )
  assert apart.standard_error < 0.8 * found.standard_error


def test_a_folder_of_another_world_or_without_cells_is_refused(workdir, tmp_path_factory):
  other = dataclasses.replace(EXPERIMENT, world=dataclasses.replace(WORLD, seed=5))
  with pytest.raises(files.DataError, match="not of the config's world"):
    spurious.report(other, workdir)
  with pytest.raises(files.DataError, match="no cells of a study"):
    spurious.report(EXPERIMENT, tmp_path_factory.mktemp("empty"))
  fewer = dataclasses.replace(EXPERIMENT, study=dataclasses.replace(EXPERIMENT.study, incorrect=0))
  with pytest.raises(files.DataError, match="values_sft: made of other traces"):
    spurious.report(fewer, workdir)


def test_the_verb_prints_the_tables_and_says_where_leaps_are_not_known(tmp_path, capsys):
  base = (
    "import ml_collections\n\n\ndef get_config(arg=''):\n  return ml_collections.ConfigDict({})\n"
  )
  (tmp_path / "c.py").write_text(
    base.replace(
      "{}", "{'recipe': 'math_rl', 'data': {'task': 'gsm8k', 'tokenizer': {'kind': 'bytes'}}}"
    )
  )
  assert main(["report", "--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path)]) == 0
  assert "task 'gsm8k': nobody knows which of its steps are leaps" in capsys.readouterr().out
