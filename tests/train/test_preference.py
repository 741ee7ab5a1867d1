"""Preference training as a user runs it, and the reference's sums that it keeps on disk."""

import json
import pathlib

import numpy as np
import pytest

from synthjax import __main__, config, files, records
from synthjax.config.worlds import World
from synthjax.data import trees
from synthjax.records import Pair
from synthjax.train import preference
from synthjax.worlds import shop

ROOT = pathlib.Path(__file__).parents[2]
WORLD = World()


def _pairs(count, **metadata):
  """Clean correct traces against traces whose first step is off by one."""
  for problem in shop.problems(WORLD, "train", count):
    correct = shop.clean_trace(problem).text
    first, _, rest = correct.partition(" ;")
    left, _, result = first.rpartition("= ")
    incorrect = f"{left}= {(int(result) + 1) % 21} ;{rest}"
    yield Pair(
      problem.id,
      problem.question,
      " " + correct,
      " " + incorrect,
      "paper",
      metadata=metadata,
    )


CONFIG = ["--config", str(ROOT / "configs/world_dpo.py:smoke")]


def _run(tmp_path, *more, verb="run"):
  workdir = ["--workdir", str(tmp_path / "run")]
  pairs = f"--config.objective.pairs={tmp_path / 'pairs.jsonl'}"
  return __main__.main([verb, *CONFIG, *workdir, pairs, *more])


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


def _loss_rows(tmp_path):
  rows = files.read_jsonl(tmp_path / "run/train/metrics.jsonl")
  return [row for row in rows if "loss" in row]


def test_pairs_from_a_file_raise_the_margin_and_the_reference_is_computed_once(tmp_path, capsys):
  records.write(tmp_path / "pairs.jsonl", _pairs(200))
  assert _run(tmp_path, "--config.train.log_every=1") == 0
  first, *_, last = _loss_rows(tmp_path)
  assert first["loss"] > last["loss"]
  assert first["margin"] < last["margin"]
  assert last["accuracy"] > 0.9
  assert {"chosen_log_prob", "chosen_drift", "rejected_drift"} <= last.keys()
  results = json.loads((tmp_path / "run/results.json").read_text())
  assert results["after"]["problems"] == 50
  assert results["train"]["steps"] == 10

  # Another beta in the same folder needs the same reference.
  sums = tmp_path / "run/reference/sums.npz"
  written_at = sums.stat().st_mtime_ns
  assert _run(tmp_path, "--config.objective.preference.beta=0.3") == 0
  assert sums.stat().st_mtime_ns == written_at

  records.write(tmp_path / "pairs.jsonl", _pairs(150))
  assert _run(tmp_path) == 1
  message = "these reference log-probs were made with another data; remove the folder"
  assert message in capsys.readouterr().err


def test_each_verb_follows_the_recipe_and_one_that_it_lacks_is_named(tmp_path, capsys):
  records.write(tmp_path / "pairs.jsonl", _pairs(60))
  assert _run(tmp_path, "--config.train.steps=2", verb="train") == 0
  # Pairs were trained on, and nothing was cached.
  assert _names(tmp_path / "run") == ["config.json", "decontaminate", "reference", "train"]
  assert _run(tmp_path, "--config.train.steps=2", verb="cache") == 1
  message = (
    "recipe 'preference' has no part 'prepare' for the verb 'cache'; its verbs are run, train"
  )
  assert message in capsys.readouterr().err


def test_pairs_that_do_not_fit_are_known_before_a_stage_begins(tmp_path, capsys):
  (tmp_path / "pairs.jsonl").write_text("")
  assert _run(tmp_path) == 1
  assert "pairs.jsonl: the file holds no pair; expected one a line" in capsys.readouterr().err
  records.write(tmp_path / "pairs.jsonl", _pairs(5))
  assert _run(tmp_path, "--config.data.seq_len=8") == 1
  assert (
    "no pair fits a sequence of data.seq_len=8 tokens (5 are longer)" in capsys.readouterr().err
  )
  assert _names(tmp_path / "run") == ["decontaminate"]


def test_a_segment_that_skips_and_an_id_beyond_the_vocabulary_are_named():
  rows = [[trees.pair([1], [[2, 2]], [[3]])], [trees.pair([1], [[4]], [[5]])]]
  batch = trees.layout(rows, trees.bounds(rows, 3, 8))
  preference.check_trees(batch, 6)
  with pytest.raises(ValueError, match=r"tokens\[1, 2\] is 5; expected 0 to 4"):
    preference.check_trees(batch, 5)
  batch["segment"][0, 3:] += 1
  with pytest.raises(ValueError, match=r"segment\[3\] is 3; expected 0 to 2"):
    preference.check_trees({**batch, "tree": np.zeros((1, 9))}, 6)


LOSSES = ["dpo", "ipo", "dpop", "rpo", "kto", "simpo", "orpo", "awr", "filtered_sft"]


# Of these losses none reads the weights of steps, which study A's weighted pairs have beside their
# advantages.
STEP_VALUES = {
  "chosen_advantages": [0.5],
  "rejected_advantages": [-0.5],
  "chosen_weights": [0.0],
  "rejected_weights": [2.0],
}


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_by_its_name(tmp_path, loss):
  records.write(tmp_path / "pairs.jsonl", _pairs(60, **STEP_VALUES))
  settings = [
    f"--config.objective.loss={loss}",
    "--config.evaluate.before=False",
    "--config.train.steps=4",
    "--config.train.log_every=1",
    "--config.objective.preference.orpo_prompt=True",
  ]
  assert _run(tmp_path, *settings) == 0
  # A segment is one side of a pair, KTO's response to another problem, or ORPO's prompt.
  segments = {"kto": 4, "orpo": 3}.get(loss, 2)
  sums = np.load(tmp_path / "run/reference/sums.npz")["sums"]
  assert len(sums) == 60 * segments
  rows = _loss_rows(tmp_path)
  assert len(rows) == 4
  assert all(np.isfinite(row["loss"]) for row in rows)
  assert rows[0]["kept"] == (0.5 if loss == "filtered_sft" else 1.0)
  if loss == "awr":
    mean_of_both_sides = np.cosh(0.5)  # of exp(advantage)
    assert rows[0]["step_weight"] == pytest.approx(mean_of_both_sides, rel=1e-5)
  if loss == "kto":
    assert rows[0]["reference_point"] == pytest.approx(0, abs=1e-4)
    assert "reference_point" in rows[-1]


WITHOUT_VALUES = "pair 1 (problem 'world-36ef93ab6565e492') has no step values, and "


@pytest.mark.parametrize(
  ("loss", "settings", "metadata", "message"),
  [
    (
      "awr",
      [],
      {},
      WITHOUT_VALUES + "loss 'awr' trains every step by its advantage",
    ),
    (
      "filtered_sft",
      [],
      {},
      WITHOUT_VALUES + "loss 'filtered_sft' trains",
    ),
    (
      "filtered_sft",
      ["--config.objective.advantage.threshold=0.75"],
      {"chosen_advantages": [0.5], "rejected_advantages": [-0.5]},
      "loss 'filtered_sft' would train none of the 10 steps; their largest advantage is 0.5, "
      "expected one above",
    ),
    (
      "step_dpo",
      ["--config.objective.preference.nll=0"],
      {"chosen_weights": [0], "rejected_weights": [0]},
      "loss 'step_dpo' would train none of the 10 steps; all their weights are 0",
    ),
  ],
)
def test_pairs_that_a_loss_cannot_learn_from_are_refused_before_a_stage_begins(
  tmp_path, capsys, loss, settings, metadata, message
):
  records.write(tmp_path / "pairs.jsonl", _pairs(5, **metadata))
  assert _run(tmp_path, f"--config.objective.loss={loss}", *settings) == 1
  assert message in capsys.readouterr().err
  assert _names(tmp_path / "run") == ["decontaminate"]


def test_the_recipe_without_pairs_or_start_says_what_it_needs(tmp_path, capsys):
  assert __main__.main(["run", *CONFIG, "--workdir", str(tmp_path)]) == 1
  assert "needs config.objective.pairs" in capsys.readouterr().err


def test_batches_of_trees_fit_their_bounds_in_any_order():
  random = np.random.default_rng(0)
  rows = []
  for _ in range(7):
    chosen, rejected = [2] * random.integers(1, 9), [3] * random.integers(1, 9)
    rows.append([trees.pair([1], [chosen], [rejected])])
  source = trees.PackedTrees(rows, None, trees.bounds(rows, 3, 32), 0, 1.0)
  for start in range(0, 30, 3):
    source.read([start, start + 1, start + 2])
  assert sorted(source.ids(i)[0] for i in range(7, 14)) == list(range(7))


def test_the_config_of_the_recipe_is_valid():
  assert config.load(str(ROOT / "configs/world_dpo.py")).objective.loss == "step_dpo"
