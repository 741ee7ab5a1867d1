"""Study A on a tiny study of the embedded world: every arm once, what it leaves on disk, and what a second run makes of it."""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import jax
import pytest

from synthjax import config, files, locks, stages
from synthjax import job as jobs
from synthjax.data import sources, tokenizers
from synthjax.math_study import arms as study_arms
from synthjax.math_study import cell, settings, splits, training
from synthjax.math_study.sampling import TooWeakError
from synthjax.model.transformer import Transformer, sized
from synthjax.recipes import math_rl
from synthjax.train import checkpoint
from synthjax.train.training import Result
from synthjax.verify import sets

ROOT = pathlib.Path(__file__).parents[2]
RARE = {"checkpoint_every": 10_000, "log_every": 10_000}
TEXT = {
  "study__arms": ("sft",),
  "data__tokenizer__kind": "bytes",
}  # of a task that is not the world
HOW = {"max_tokens": 32, "temperature": 0.7}
# What these arms differ in from others is a field of their TracePairs, which tests/credit/test_pairs.py
# holds.
LEFT_OUT = (
  "dpo_distant",
  "dpo_equal",
  "filtered_sft",
  "last_step",
  "rft_clean",
  "rft_spurious",
  "rpo",
  "step_dpo.step",
)
ARMS = tuple(arm for arm in study_arms.ARMS if arm not in LEFT_OUT)
PAIRED = {
  arm: study_arms.ARMS[arm].data
  for arm in ARMS
  if isinstance(study_arms.ARMS[arm].data, study_arms.TracePairs)
}
TINY = {
  "name": "tiny",
  "recipe": "math_rl",
  "model": "world_160k",
  "world": {"leap": 0.3},
  "data": {"task": "world", "test_problems": 20},
  "train": {
    "batch_size": 8,
    "init": str(ROOT / "data/base_policy"),
    "epochs": 20.0,
    "optimizer": {"learning_rate": 1e-3},
    **RARE,
  },
  "objective": {"preference": {"beta": 0.1, "nll": 1.0}, "advantage": {"beta": 0.15}},
  "study": {
    "problems": (24,),
    "baseline_problems": (48,),
    "seeds": (0,),
    "start": "rft",
    "marked": 1,
    "arms": (*ARMS, "step_dpo.branch*2"),
    "split": "dev",
    "least_accuracy": 0.1,
    "samples": 6,
    "samples_many": 8,
    "sampling": HOW,
    "incorrect": 3,
    "kept": 2,
    "values": {"rollouts": 4, "block": 4, "keep": 2, "sampling": HOW},
    "pairs": {"thresholds": {"min_before": 0.1, "confidence_before": 0.0, "confidence_drop": 0.0}},
    "rft": {"batch_size": 8, "epochs": 4.0, "optimizer": {"learning_rate": 1e-3}, **RARE},
    "preference": {"batch_size": 8, "epochs": 2.0, "optimizer": {"learning_rate": 1e-4}, **RARE},
  },
  "evaluate": {"max_new_tokens": 32, "slots": 16},
}
FEW = ("sft", "rft", "rft2", "dpo", "awr")


def _experiment(**changes):
  """The tiny study with some of its settings changed, given as `study__arms=...`."""
  given = json.loads(json.dumps(TINY))
  for name, value in changes.items():
    *parts, last = name.split("__")
    inner = given
    for part in parts:
      inner = inner.setdefault(part, {})
    inner[last] = value
  return config.resolve(given)


def _run(workdir, **changes):
  """On one device, its programs compiled fast instead of well: nearly all the time is the compiler's."""
  one, job = jax.devices()[:1], jobs.Job(_experiment(**changes), workdir)
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    with (
      mock.patch.object(jax, "devices", return_value=one),
      mock.patch.object(jax, "local_devices", return_value=one),
    ):
      return math_rl.run(job)
  finally:
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """(result, work folder) of the tiny study."""
  workdir = tmp_path_factory.mktemp("study") / "tiny"
  return _run(workdir), workdir


@pytest.fixture
def copied(whole, tmp_path):
  """A copy of its work folder."""
  return pathlib.Path(shutil.copytree(whole[1], tmp_path / "tiny"))


def _made(workdir, stage, cell="n00024_s0"):
  return files.read_json(workdir / cell / stage / "manifest.json")["result"]


def _points(result, count=24):
  return {point["arm"]: point for point in result["points"] if point["problems"] == count}


def _rows(workdir, name):
  return list(files.read_jsonl(workdir / "n00024_s0" / name))


def _state(workdir):
  """When each stage was finished."""
  return {path.parent.name: path.stat().st_mtime_ns for path in workdir.glob("n*/*/manifest.json")}


def _redone(before, workdir):
  """Stages that were finished since `before`, but for what was moved out of their way."""
  return {
    name
    for name, when in _state(workdir).items()
    if before.get(name) != when and not stages.is_kept(name)
  }


def test_every_arm_is_trained_and_evaluated(whole):
  result, workdir = whole
  arms = (*ARMS, "step_dpo.branch*2")
  assert set(_points(result)) == set(arms) and set(_points(result, 48)) == {"sft"}
  for arm in arms:
    assert (
      _made(workdir, f"evaluate_dev_{arm}")["problems"]
      == _made(workdir, f"greedy_dev_{arm}")["problems"]
      == 20
    )
    assert _points(result)[arm]["accuracy"] == pytest.approx(
      _made(workdir, f"evaluate_dev_{arm}")["accuracy"]
    )
  assert not any("nothing to learn" in note for note in result["notes"])
  assert {(each["arm"], each["problems"]) for each in result["greedy"]} == {
    (arm, 24) for arm in arms
  } | {("sft", 48)}
  base = _made(workdir, "evaluate_dev_base")["accuracy"]
  assert result["base"] == pytest.approx(base)
  assert [each["value"] for each in result["sft_less_base"]] == [
    pytest.approx(_points(result, n)["sft"]["accuracy"] - base) for n in (24, 48)
  ]
  assert (workdir / "table.txt").read_text().startswith("SFT DOES NOT IMPROVE ON ITS BASE")


def test_every_purpose_and_round_draws_its_own_random_numbers(whole):
  _, workdir = whole
  drawn = [
    _rows(workdir, f"{stage}/drawn.jsonl")
    for stage in ("draw6_sft", "draw6_rft", "draw6_step_dpo.branch")
  ]
  one = cell.open_cell(
    jobs.Job(_experiment(), workdir),
    jobs.tokenizer_of(jobs.Job(_experiment(), workdir)),
    24,
    0,
  )
  purposes = [
    one.seed("draw", "rft"),
    one.seed("draw", "step_dpo.branch"),
    one.seed("values", "rft"),
    one.seed("evaluate", "dev"),
  ]
  assert len(set(purposes)) == 4 and all(0 <= purpose < 2**31 for purpose in purposes)
  assert len({str([d["text"] for d in each]) for each in drawn}) == 3
  few = {
    d["text"]
    for d in _rows(workdir, "draw6_sft/drawn.jsonl")
    if d["problem_id"] == drawn[0][0]["problem_id"]
  }
  many = [
    d["text"]
    for d in _rows(workdir, "draw8_sft/drawn.jsonl")
    if d["problem_id"] == drawn[0][0]["problem_id"]
  ]
  assert few == set(many[:6])  # more samples begin with fewer ones


def test_equal_sampling_draws_as_many_tokens_as_samples_and_values_together(whole):
  _, workdir = whole
  for policy, stage in (("sft", "right_rft_equal"), ("rft", "right_rft2_equal")):
    each = _made(workdir, stage)["traces"] // 24
    drawn = _made(workdir, f"draw{each}_{policy}")["tokens"]
    wanted = (
      _made(workdir, f"draw6_{policy}")["tokens"] + _made(workdir, f"values_{policy}")["tokens"]
    )
    assert each > 6 and drawn == pytest.approx(wanted, rel=0.25)  # the texts are others


def test_counts_of_traces_add_up(whole):
  _, workdir = whole
  teacher = _made(workdir, "teacher")
  assert teacher["problems"] == teacher["equal"] == 24
  for stage, each in {
    "draw6_sft": 6,
    "draw8_sft": 8,
    "draw6_rft": 6,
    "draw6_step_dpo.branch": 6,
  }.items():
    made, drawn = _made(workdir, stage), _rows(workdir, f"{stage}/drawn.jsonl")
    assert (
      made["traces"]
      == len(drawn)
      == 24 * each
      == sum(made.get(value, 0) for value in ("equal", "different", "undecided"))
    )
    assert (
      made["equal"]
      == sum(d["verdict"]["value"] == "equal" for d in drawn)
      == made["accuracy"] * made["traces"]
    )
    assert made["distinct"] == len({(d["problem_id"], d["text"]) for d in drawn})
    assert sum(made["reasons"].values()) == made.get("undecided", 0) and made["truncated"] == sum(
      not d.get("complete", True) for d in drawn
    )
  for stage, (draws, most) in {
    "rft": ("draw6_sft", 2),
    "rft_many": ("draw8_sft", 8),
    "rft2": ("draw6_rft", 2),
  }.items():
    made, drawn = _made(workdir, f"right_{stage}"), _rows(workdir, f"{draws}/drawn.jsonl")
    right = collections.defaultdict(set)
    for d in drawn:
      if d["verdict"]["value"] == "equal" and d.get("complete", True):
        right[d["problem_id"]].add(sets.equations(d["text"]))  # what makes two traces the same
    assert made["kept"] == sum(min(most, len(texts)) for texts in right.values()) and made[
      "problems"
    ] == len(right)
    assert (
      made["kept"] + sum(made["dropped"].values())
      == made["right"]
      == _made(workdir, draws)["equal"]
    )
  assert _made(workdir, "rft")["solutions"] == 24 + _made(workdir, "right_rft")["kept"]
  assert (
    _made(workdir, "rft2")["solutions"]
    == _made(workdir, "rft")["solutions"] + _made(workdir, "right_rft2")["kept"]
  )


def test_counts_of_pairs_and_pits_add_up(whole):
  _, workdir = whole
  for arm, paired in PAIRED.items():
    mode = paired.mode
    made, rows = _made(workdir, f"pairs_{arm}"), _rows(workdir, f"pairs_{arm}/pairs.jsonl")
    wrong, dropped = made["traces"]["wrong"], made["dropped"]
    assert made["mode"] == mode and made["pairs"] == len(rows) == _made(workdir, arm)["trees"] > 0
    assert sum(made["problems"].values()) == 24 and made["problems"]["with pairs"] == len(
      {row["problem_id"] for row in rows}
    )
    assert (
      sum(made["traces"].values()) == 24 * 6
      and made["traces"]["right"] == _made(workdir, "draw6_rft")["equal"]
    )
    if mode in ("paper", "branch", "step"):
      without = dropped.get("trace: no pit within the thresholds", 0) + dropped.get(
        "trace: no step values", 0
      )
      assert sum(made["pits"].values()) + without == wrong
      assert wrong - dropped["trace: no step values"] == _made(workdir, "values_rft")["traces"]
      assert all(str(row["metadata"]["pit"]) in made["pits"] for row in rows)
    most = max(
      collections.Counter((row["problem_id"], row["metadata"]["trace"]) for row in rows).values()
    )
    assert most == 1
  made = _made(workdir, "trees_awr")
  assert (
    made["traces"] + sum(made["dropped"].values()) == 24 * 6
    and made["trees"] == _made(workdir, "awr")["trees"] <= made["problems"] == 24
  )
  assert (
    made["traces"] == _made(workdir, "values_rft_all")["traces"]
  )  # the full schedule values every step


def test_tokens_are_those_that_were_drawn_and_an_arm_pays_for_all_that_it_starts_from(whole):
  result, workdir = whole
  stages = [path.name for path in (workdir / "n00024_s0").iterdir()]
  sampled = {
    stage: _made(workdir, stage)["tokens"]
    for stage in stages
    if stage.startswith(("draw", "values"))
  }
  for stage, tokens in sampled.items():
    drawn = [
      sample
      for row in _rows(workdir, f"{stage}/journal.jsonl")
      for sample in row["result"]["samples"]
    ]
    assert tokens == sum(
      len(sample["log_probs"]) for sample in drawn
    )  # one a token, end-of-text among them
  own = {arm: _made(workdir, arm)["tokens"] for arm in [*ARMS, "step_dpo.branch*2"]}
  trained, drawn = (
    {"sft": ("sft",), "sft_long": ("sft_long",)},
    {"sft": (), "sft_long": (), "rft": ("draw6_sft",)},
  )
  trained |= {
    arm: ("sft", arm) for arm in ("rft", "rft_many", "rft_equal", "rft_clean", "rft_spurious")
  }
  more = {
    arm: _made(workdir, f"right_{arm}")["traces"] // 24 for arm in ("rft_equal", "rft2_equal")
  }
  drawn["rft_equal"] = (f"draw{more['rft_equal']}_sft",)
  drawn |= dict.fromkeys(("rft_many", "rft_clean", "rft_spurious"), ("draw8_sft",))
  values_of = {"": (), "incorrect": ("values_rft",), "every": ("values_rft_all",)}
  for arm in ("rft2", "rft2_equal", *PAIRED, "awr"):
    values = values_of[study_arms.ARMS[arm].needs_values]
    draws = f"draw{more['rft2_equal']}_rft" if arm == "rft2_equal" else "draw6_rft"
    trained[arm], drawn[arm] = ("sft", "rft", arm), ("draw6_sft", draws, *values)
  trained["step_dpo.branch*2"] = (*trained["step_dpo.branch"], "step_dpo.branch*2")
  drawn["step_dpo.branch*2"] = (
    *drawn["step_dpo.branch"],
    "draw6_step_dpo.branch",
    "values_step_dpo.branch",
  )
  for arm, point in _points(result).items():
    assert point["tokens_trained"] == sum(own[name] for name in trained[arm]), arm
    assert point["tokens_sampled"] == sum(sampled[name] for name in drawn[arm]), arm
  assert own["sft_long"] == pytest.approx(own["rft"], rel=0.3)  # to within a step


def test_sides_of_pairs_are_the_sampled_tokens_and_end_of_text_stands_where_the_design_puts_it(
  whole,
):
  _, workdir = whole
  tokenizer = tokenizers.load(_experiment().data.tokenizer, _experiment().world)
  drawn = collections.defaultdict(list)
  for row in _rows(workdir, "draw6_rft/drawn.jsonl"):
    drawn[row["problem_id"]].append(row)
  ended = {
    "random": (True, True),
    "distant": (True, True),
    "paper": (True, False),
    "branch": (True, False),
    "step": (False, False),
  }
  for arm, paired in PAIRED.items():
    mode = paired.mode
    for row in _rows(workdir, f"pairs_{arm}/pairs.jsonl"):
      about = row["metadata"]
      wrong, ids = drawn[row["problem_id"]][about["trace"]], {}
      for side, ends in zip(("chosen", "rejected"), ended[mode]):
        ids[side] = list(itertools.chain(*about[f"{side}_steps"]))
        complete = row.get(f"{side}_complete", True)
        assert complete == (ends and (side == "chosen" or wrong.get("complete", True)))
        assert ids[side].count(tokenizer.eos_id) == complete == (ids[side][-1] == tokenizer.eos_id)
        whole_text = tokenizer.decode(
          [*about["prefix_ids"], *ids[side][: len(ids[side]) - complete]]
        )
        assert (
          whole_text == row["prefix"] + row[side] and tokenizer.eos_id not in about["prefix_ids"]
        )
      pit, known = about.get("pit"), list(itertools.chain(*wrong["steps"]))
      assert wrong["verdict"]["value"] != "equal" and (pit is None) == (
        mode in ("random", "distant")
      )
      before = wrong["steps"][: pit - 1] if mode in ("branch", "step") else []
      assert about["prefix_ids"] == [*tokenizer.encode(row["prefix"])] and row["prefix"].endswith(
        tokenizer.decode(list(itertools.chain(*before)))
      )
      given = len(list(itertools.chain(*before)))
      until = len(list(itertools.chain(*wrong["steps"][:pit]))) if pit else len(known)
      assert [token for token in ids["rejected"] if token != tokenizer.eos_id] == known[given:until]
      if mode in ("random", "distant", "paper"):
        right = [
          [*itertools.chain(*d["steps"])]
          for d in drawn[row["problem_id"]]
          if d["verdict"]["value"] == "equal"
        ]
        assert [token for token in ids["chosen"] if token != tokenizer.eos_id] in right
      elif mode == "step":
        assert len(about["chosen_steps"]) == 1


def test_preference_arms_start_from_and_refer_to_the_policy_that_the_config_says(whole, copied):
  def start(workdir, arm):
    folder = workdir / "n00024_s0"
    identity = {name: jobs.identity(str(folder / name / "checkpoints")) for name in ("sft", "rft")}
    reference = files.read_json(folder / arm / "reference/made_of.json")["checkpoint"]
    _, _, about = checkpoint.load_params(folder / arm / "checkpoints", shapes)
    found = next(name for name, known in identity.items() if known == reference)
    assert about["config"]["train"]["init"] == str(folder / found / "checkpoints")
    return found

  _, workdir = whole
  shapes = Transformer(
    sized(
      _experiment().model, tokenizers.load(_experiment().data.tokenizer, _experiment().world).size
    )
  ).abstract()
  assert {start(workdir, arm) for arm in (*PAIRED, "awr")} == {"rft"}
  result = _run(copied, study__start="sft", study__arms=("rft2", "dpo"), study__least_accuracy=0.0)
  assert start(copied, "dpo") == "sft"
  assert (
    _made(copied, "rft2")["solutions"] == 24 + _made(copied, "right_rft2")["kept"]
  )  # the samples of SFT, once
  assert (
    _points(result)["dpo"]["tokens_sampled"] == _made(copied, "draw6_sft")["tokens"]
  )  # they were not free
  assert (
    _points(result)["dpo"]["tokens_trained"]
    == _made(copied, "sft")["tokens"] + _made(copied, "dpo")["tokens"]
  )
  assert set(_points(result)) == {"sft", "rft2", "dpo"}  # sft is the unit, asked for or not


def test_a_solution_that_comes_twice_is_trained_on_once_and_counted(copied):
  job = jobs.Job(_experiment(), copied)
  tiny = cell.open_cell(job, jobs.tokenizer_of(job), 24, 0)
  made = []

  def stage(name, inputs, work):
    made.append(work(tiny.folder / name))
    return made[-1]

  with (
    mock.patch.object(cell.Cell, "stage", staticmethod(stage)),
    mock.patch.object(training.policies, "on_documents") as train,
  ):
    train.return_value = Result(steps=1, loss=0.0, eval_loss=None, tokens=1)
    teacher = [cell.Solution(p.id, tuple(tiny.tokenizer.encode(p.targets))) for p in tiny.problems]
    training.by_likelihood(
      tiny, "sft", teacher + teacher[:5], tiny.experiment.train, None, cell.Cost()
    )
  assert (
    made[0]["solutions"] == 29 and made[0]["repeated"] == 5 and len(train.call_args.args[1]) == 24
  )


def test_a_second_run_does_nothing_and_prints_the_same_table(whole, copied, capsys):
  _, workdir = whole
  before, table = _state(copied), (workdir / "table.txt").read_text()
  began = {path: path.stat().st_mtime_ns for path in copied.glob("n*/**/*") if path.is_file()}
  assert _run(copied)["points"] == json.loads(json.dumps(whole[0]["points"]))
  assert (copied / "table.txt").read_text() == table.replace(str(workdir), str(copied))
  assert (copied / "table.txt").read_text() in capsys.readouterr().out
  assert not _redone(before, copied)
  assert {
    path: path.stat().st_mtime_ns for path in copied.glob("n*/**/*") if path.is_file()
  } == began


def test_a_changed_setting_redoes_the_stages_that_it_decides_and_no_others(copied):
  before = _state(copied)
  _run(
    copied,
    study__arms=FEW,
    objective__preference__beta=0.3,
    objective__pairs="elsewhere.jsonl",
    evaluate__slots=8,
    study__values__threads=1,
    train__log_every=5,
  )
  assert _redone(before, copied) == {"dpo", "evaluate_dev_dpo", "greedy_dev_dpo"}
  before = _state(copied)
  _run(copied, study__arms=("sft",), evaluate__max_new_tokens=24)
  assert _redone(before, copied) == {"evaluate_dev_sft", "greedy_dev_sft", "evaluate_dev_base"}


def test_settings_are_chosen_on_development_problems_by_the_best_accuracy_and_can_be_given_to_another_study(
  copied, tmp_path
):
  tune = {
    "problems": 24,
    "dev_problems": 16,
    "samples": 1,
    "rates": (1e-5, 1e-3),
    "betas": (0.1,),
    "epochs": (1.0,),
    "likelihood_rates": (5e-4, 1e-3),
    "likelihood_epochs": (20.0,),
  }
  result = _run(copied, study__arms=("sft", "rpo"), study__start="sft", study__tune=tune)
  found = files.read_json(copied / "tuned.json")
  assert set(found["arms"]) == {"sft", "rpo"} and found["provenance"]["base"]
  table = (copied / "tune/table.txt").read_text().splitlines()[1:]
  for arm, chosen in found["arms"].items():
    rows = [line.replace("<- chosen", "").split() for line in table if line.startswith(f"{arm} ")]
    best = next(
      line.split() for line in table if line.startswith(f"{arm} ") and "<- chosen" in line
    )
    assert len(rows) == chosen["trials"] == 2 and chosen["flops"] > 0
    assert (
      float(best[5])
      == max(float(row[5]) for row in rows)
      == pytest.approx(100 * chosen["accuracy"], abs=0.06)
    )
    assert float(best[1]) == chosen["setting"]["learning_rate"] and chosen["at_edge"] == [
      "learning_rate"
    ]
    trained = files.read_json(copied / "n00024_s0" / arm / "manifest.json")["config"]["inputs"][
      "train"
    ]
    assert trained["optimizer"]["learning_rate"] == chosen["setting"]["learning_rate"]
  assert {row[4] for row in (line.split() for line in table if line.startswith("rpo "))} == {
    "1"
  }  # never without the anchor
  assert all(point["tuned_multiple"] for point in result["points"])
  assert not [*copied.glob("tune/n*/evaluate_test*")]
  before = _state(copied)
  again = _run(
    copied, study__arms=("sft", "rpo"), study__start="sft", study__tuned=str(copied / "tuned.json")
  )
  assert again["points"] == result["points"] and not _redone(before, copied)
  with pytest.raises(
    config.ConfigError, match="has 'dpo', and the tuned settings know sft, rpo; tune it too"
  ):
    _run(
      copied,
      study__arms=("sft", "dpo"),
      study__start="sft",
      study__tuned=str(copied / "tuned.json"),
    )
  with pytest.raises(
    config.ConfigError, match="config.study.tuned is .*nowhere.json.*no such file"
  ):
    _run(tmp_path / "other", study__tuned="nowhere.json")


@pytest.mark.parametrize("length", [{"epochs": 3.0}, {"steps": 7, "epochs": 0.0}])
def test_without_tuning_arms_are_trained_for_as_long_as_the_config_says(length):
  changes = {
    f"{group}__{name}": value
    for group in ("train", "study__rft", "study__preference")
    for name, value in length.items()
  }
  experiment = _experiment(**changes)
  study = experiment.study
  for arm, cfg in (
    ("sft", experiment.train),
    ("rft", study.rft),
    ("rft2", study.rft),
    ("chosen_only", study.preference),
    ("dpo", study.preference),
    ("awr", study.preference),
  ):
    assert settings.of_config(experiment, study_arms.ARMS[arm]).train(cfg) == cfg


def test_a_second_look_at_the_test_problems_with_other_settings_is_said(copied):
  once = _run(
    copied,
    study__arms=("sft",),
    study__split="test",
    evaluate__temperature=0.5,
    evaluate__samples=2,
    evaluate__pass_at=(2,),
  )
  decoding = {
    kind: _made(copied, f"{kind}_test_sft")["decoding"] for kind in ("greedy", "evaluate")
  }
  assert {kind: (how["temperature"], how["samples"]) for kind, how in decoding.items()} == {
    "greedy": (0.0, 1),
    "evaluate": (0.7, 1),
  }
  assert not any("looked at more than once" in note for note in once["notes"])
  again = _run(copied, study__arms=("sft",), study__split="test", train__epochs=10.0)
  assert any(
    "looked at more than once, with other settings: sft (2 times)" in note
    for note in again["notes"]
  )


def test_an_arm_with_nothing_to_learn_stays_where_it_starts_and_says_so(copied):
  # No rollout of one token reaches an answer: no step has a value to lose.
  result = _run(
    copied, study__arms=("sft", "rft", "step_dpo.paper"), study__values__sampling__max_tokens=1
  )
  paper, rft = (_points(result)[arm] for arm in ("step_dpo.paper", "rft"))
  assert paper["accuracy"] == rft["accuracy"] and paper["tokens_trained"] == rft["tokens_trained"]
  said = "n00024_s0: the samples of 'rft' gave 'step_dpo.paper' nothing to learn from; it is 'rft' unchanged"
  assert said in result["notes"] and said in (copied / "table.txt").read_text()
  assert _made(copied, "pairs_step_dpo.paper")["pairs"] == 0


def test_solutions_that_do_not_fit_a_row_are_an_error_or_counted_and_noted(tmp_path, copied):
  with pytest.raises(
    files.DataError,
    match=r"of the teacher's 24 correct traces are longer than data.seq_len=40, .* set data.too_long='drop'",
  ):
    _run(tmp_path / "short", study__arms=("sft",), data__seq_len=40)
  result = _run(
    tmp_path / "short",
    study__arms=("sft",),
    study__baseline_problems=(25,),
    data__seq_len=40,
    data__too_long="drop",
    train__epochs=1.0,
  )
  left = _made(tmp_path / "short", "sft")["too_long"]
  assert (
    0 < left < 24
    and f"n00024_s0, 'sft': {left} of 24 solutions are longer than a sequence and were left out"
    in result["notes"]
  )


def test_a_policy_that_is_too_weak_stops_the_study_with_advice(copied):
  with pytest.raises(
    TooWeakError,
    match=r"n00024_s0: [\d.]+ % of the samples of 'rft' are correct; below 100 % pits are noise. Train 'rft' on",
  ):
    _run(copied, study__arms=FEW, study__least_accuracy=1.0)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"study__arms": ("sft", "rft3")},
      "config.study.arms has 'rft3'; expected one of sft, sft_long",
    ),
    ({"study__arms": ("sft*2",)}, "has 'sft\\*2'"),
    ({"study__arms": ("dpo*1",)}, "has 'dpo\\*1'.*k of 2 and more"),
    (
      {**TEXT, "study__arms": ("rft_clean",), "data__task": "gsm8k"},
      "'rft_clean', which picks traces by their leaps",
    ),
    ({"study__baseline_problems": ()}, r"config.study.problems is \(24,\).*SFT at two sizes"),
    (
      {"study__tune": {"problems": 24, "seed": 0}},
      "config.study.tune.seed is 0, one of config.study.seeds",
    ),
    ({"study__control": (24,)}, r"config.study.control is \(24,\)"),
    ({**TEXT, "study__control": (24, 48), "data__task": "gsm8k"}, "in the embedded world, or none"),
    ({"study__seeds": ()}, r"config.study.seeds is \(\); expected .*not empty"),
    ({"data__too_long": "split"}, "config.data.too_long is 'split'"),
  ],
)
def test_a_study_that_cannot_be_is_refused_before_anything_is_trained(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    _run(tmp_path / "none", **changes)
  assert not (tmp_path / "none").exists()


def test_of_two_starts_that_share_a_folder_one_works_on_a_cell(tmp_path):
  message = "study A, cell n00024_s0, on host .* is at work on .*n00024_s0: .* give this start other config.study.seeds"
  with (
    locks.folder_lock(tmp_path / "n00024_s0", "study A, cell n00024_s0,"),
    pytest.raises(locks.LockError, match=message),
  ):
    _run(tmp_path)
  assert not list(tmp_path.glob("n*/*"))


def test_forcing_is_refused_with_what_to_do_instead(tmp_path):
  with pytest.raises(ValueError, match="remove its folder instead of giving --force"):
    math_rl.run(jobs.Job(_experiment(), tmp_path, force=True))


def _of_cell(experiment, count, seed):
  """The training problems of a cell, as cell.open_cell asks for them."""
  world = dataclasses.replace(experiment.world, seed=experiment.world.seed + seed)
  return [
    p.question
    for p in splits.training(
      dataclasses.replace(experiment, seed=experiment.seed + seed, world=world), count
    )
  ]


def _evaluated(experiment, split, count=0):
  study, data = (
    dataclasses.replace(experiment.study, split=split),
    dataclasses.replace(experiment.data, test_problems=count),
  )
  return [
    p.question for p in splits.evaluated(dataclasses.replace(experiment, study=study, data=data))
  ]


def _check_splits(experiment, evaluated):
  few, many, other = (
    _of_cell(experiment, 24, 0),
    _of_cell(experiment, 300, 0),
    _of_cell(experiment, 300, 1),
  )
  assert many[:24] == few and len(set(many)) == 300 and len({*many, *other}) > 450
  assert not {*many, *other} & {*evaluated["dev"], *evaluated["test"]} and not {
    *evaluated["dev"]
  } & {*evaluated["test"]}
  assert all(evaluated.values())


def test_no_problem_of_the_world_is_in_two_splits_and_smaller_sets_begin_larger_ones():
  _check_splits(
    _experiment(), {split: _evaluated(_experiment(), split, 500) for split in ("dev", "test")}
  )


def test_no_problem_of_gsm8k_is_in_two_splits_and_smaller_sets_begin_larger_ones(shared_data):
  experiment = _experiment(**TEXT, data__task="gsm8k", data__folder=str(shared_data))
  evaluated = {split: _evaluated(experiment, split) for split in ("dev", "test")}
  _check_splits(experiment, evaluated)
  training, development, _ = splits.divided(experiment)
  assert (
    len(development) == pytest.approx(0.1 * len(training + development), rel=0.1)
    and len(evaluated["test"]) == 1319
  )
  with pytest.raises(
    config.ConfigError,
    match=f"asks for 7,000 problems; task 'gsm8k' has {len(training):,} for training",
  ):
    splits.training(experiment, 7000)


def test_traces_from_a_file_are_divided_too(tmp_path):
  files.write_jsonl(
    tmp_path / "traces.jsonl",
    ({"inputs": f"{i} + 1", "targets": f" = {i + 1}", "answer": str(i + 1)} for i in range(200)),
  )
  path = str(tmp_path / "traces.jsonl")
  experiment = _experiment(**TEXT, data__task="traces", data__train_path=path, data__test_path=path)
  training, development = ([p.inputs for p in part] for part in splits.divided(experiment)[:2])
  assert 5 < len(development) < 50 and len({*training, *development}) == 200
  assert {*sources.examples(experiment.data, experiment.world, "train")} == {
    *itertools.chain(*splits.divided(experiment)[:2])
  }


_CONFIG = """
import json
import ml_collections


def get_config():
  return ml_collections.ConfigDict(json.loads({text!r}))
"""


def _start(workdir):
  given = {**TINY, "study": {**TINY["study"], "arms": ("rft2", "dpo", "step_dpo.branch", "awr")}}
  workdir.parent.mkdir(exist_ok=True)
  file = workdir.parent / "tiny.py"
  file.write_text(_CONFIG.format(text=json.dumps(given)))
  fast = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  }
  command = [
    sys.executable,
    "-m",
    "synthjax",
    "run",
    "--config",
    str(file),
    "--workdir",
    str(workdir),
  ]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, **fast},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _progress(workdir):
  """Stages that have begun, and results that are in journals."""
  return len([*workdir.glob("n*/*/begun.json")]) + sum(
    path.read_bytes().count(b"\n") for path in workdir.glob("n*/*/journal.jsonl")
  )


def _finish(run):
  output, _ = run.communicate(timeout=500)
  assert run.returncode == 0, output


@pytest.mark.slow
def test_a_study_stopped_and_killed_at_random_moments_ends_with_the_table_of_an_uninterrupted_one(
  tmp_path,
):
  whole, killed = tmp_path / "whole/tiny", tmp_path / "killed/tiny"
  _finish(_start(whole))
  ends = [
    (signal.SIGTERM, 143),
    (signal.SIGKILL, -9),
    (signal.SIGINT, 130),
    (signal.SIGKILL, -9),
    (signal.SIGTERM, 143),
  ]
  for goal, (number, code) in zip(
    sorted(random.Random(0).sample(range(1, _progress(whole)), 5)), ends
  ):
    run = _start(killed)
    while run.poll() is None and _progress(killed) < goal:
      time.sleep(0.005)
    assert run.poll() is None, run.stdout.read()
    run.send_signal(number)
    output, _ = run.communicate(timeout=30)
    assert run.returncode == code, output
    assert code < 0 or "synthjax: stopped by" in output.splitlines()[-1]
  assert _progress(killed) < _progress(whole)
  _finish(_start(killed))
  assert (killed / "table.txt").read_text().replace(str(killed), str(whole)) == (
    whole / "table.txt"
  ).read_text()
  for path in sorted(whole.glob("n*/draw*/drawn.jsonl")):  # the sampled tokens
    assert path.read_text() == (killed / path.relative_to(whole)).read_text()
