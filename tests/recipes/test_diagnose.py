import json
import math
import re

import numpy as np
import pytest

from synthjax import __main__, files
from synthjax.config.credit_phase import Chain, Tuning
from synthjax.credit_phase import diagnose
from synthjax.credit_phase.diagnose import Budget, Interval, ObservedProblem, PhasePoint, Placed
from synthjax.credit_phase.likelihood import ObservedPrefix

TINY = Tuning(
  rates=(0.3,), betas=(0.1,), temperatures=(0.05,), steps=(20,), tuning_replicates=2, replicates=4
)


def _of_chain(chain, problems, rollouts, seed, certain=0):
  """What is seen of a chain: 8 traces of every problem, rollouts from the prefixes of two of them.

  `certain` further steps of every trace are always the same.
  """
  random = np.random.default_rng(seed)

  def step():
    action = 0 if random.random() < chain.correct else int(random.integers(1, chain.actions))
    return action, action == 0 or random.random() < chain.survival

  def rollout(context, harmless, left):
    action, survives = step()
    return f"{context}: {action}", bool(
      harmless and survives and random.random() < chain.harmless**left
    )

  found = []
  for number in range(problems):
    contexts = random.integers(chain.contexts, size=chain.length)
    prefixes, correct = {}, []
    for trace in range(8):
      taken, harmless = (), True
      for place, context in enumerate(contexts):
        if trace < 2 and taken not in prefixes:
          rolled = [rollout(context, harmless, chain.length - place - 1) for _ in range(rollouts)]
          prefixes[taken] = ObservedPrefix(str(context), *zip(*rolled))
        elif trace < 2:
          prefixes[taken] = prefixes[taken]._replace(times=2)
        action, survives = step()
        taken, harmless = (*taken, action), harmless and survives
      correct.append(harmless)
    for place in range(certain):
      rolled = random.random(rollouts) < chain.success
      prefixes["certain", place] = ObservedPrefix(
        f"{number} {place}", ("the same",) * rollouts, tuple(rolled.tolist()), times=2
      )
    found.append(
      ObservedProblem(tuple(correct), (chain.length + certain,) * 8, tuple(prefixes.values()))
    )
  return found


def test_what_a_chain_was_made_with_lies_within_the_intervals():
  chains = [
    (Chain(success=0.3, survival=0.5, length=8, contexts=60), 0),
    (
      Chain(success=0.3, survival=0.5, length=3, contexts=30),
      0,
    ),  # the correct step is no mode here
    (Chain(success=0.3, survival=0.0, length=5, contexts=100), 0),
    (Chain(success=0.4, survival=0.5, length=4, contexts=60), 4),
  ]
  missed = []
  for seed, (chain, certain) in enumerate(chains):
    found = diagnose.estimate(_of_chain(chain, 60, 8, seed, certain), replicates=100).figures
    for name in PhasePoint._fields:
      truth, (_, low, high) = getattr(chain, name), found[name]
      if not low - 1e-9 <= truth <= high + 1e-9:
        missed.append((chain, name, found[name]))
      margin = (high - low) / 2 + 1e-9
      assert low - margin <= truth <= high + margin, (chain, name, found[name])
    assert found["survival"].high - found["survival"].low < 0.35
    assert found["length"].high - found["length"].low < 0.5 * chain.length
    assert all(map(math.isnan, found["precision"]))  # no pit was named
  assert len(missed) <= 2, missed  # of 16 at 95 %


def test_more_problems_narrow_the_intervals():
  chain = Chain(success=0.3, survival=0.5, length=4, contexts=40)
  few, many = (
    diagnose.estimate(_of_chain(chain, count, 8, 1), replicates=60).figures for count in (20, 80)
  )
  for name in ("success", "survival", "contexts"):
    assert many[name].high - many[name].low < few[name].high - few[name].low


def test_precision_is_the_share_of_the_pits_that_fresh_rollouts_confirm():
  problems = [ObservedProblem((True,), (2,), (), (number % 4 > 0,)) for number in range(40)]
  found = diagnose.estimate(problems, replicates=100).figures["precision"]
  assert found.value == 0.75 and found.low < 0.7 and found.high > 0.8


def test_where_nothing_repeats_decisions_are_as_many_as_that_allows():
  alone = [
    ObservedProblem((True,), (2,), (ObservedPrefix(str(number), ("a", "b"), (True, False)),))
    for number in range(30)
  ]
  found = diagnose.estimate(alone, replicates=20)
  assert found.point.contexts == pytest.approx(30 * 29 / 6)


@pytest.mark.parametrize(
  "setting",
  [
    PhasePoint(0.3, 0.5, 4.2, 60.0),
    PhasePoint(0.02, 0.95, 1.0, 1.0),
    PhasePoint(1.0, 0.0, 0.2, 1e6),
    PhasePoint(0.0, 0.0, 9.0, 40.0),
  ],
)
def test_every_estimate_is_a_chain_that_can_be_computed(setting):
  for budget in (Budget(8, 2, 1), Budget(10_000, 8, 8)):
    chain = diagnose.chain_of(setting, budget)
    assert chain.problems <= budget.problems and chain.success == pytest.approx(
      np.clip(setting.success, 0.01, 0.99)
    )
    ratio = max(setting.contexts, 1) / budget.problems
    assert chain.contexts == 1 or chain.contexts / chain.problems == pytest.approx(ratio, rel=0.2)


def test_placed_where_credit_pays_for_equal_traces_it_is_said_to():
  setting = PhasePoint(success=0.3, survival=0.5, length=6.0, contexts=20.0)
  found = diagnose.Estimates({}, setting, [setting] * 2, 100)
  placed = diagnose.place(found, Budget(problems=24, traces=8, rollouts=4), draws=2, quick=TINY)
  assert (
    placed.at_equal_traces.value > 0.05
    and placed.at_equal_sampling.value < placed.at_equal_traces.value
  )
  assert placed.chain == Chain(
    success=0.3, survival=0.5, length=6, contexts=20, traces=8, rollouts=4, problems=24
  )
  assert set(placed.success["sampling"]) == {"rft", "dpo", "rpo", "chosen_only", "branch", "step"}


@pytest.mark.parametrize(
  ("traces", "sampling", "says"),
  [
    ((0.1, 0.05, 0.2), (0.05, 0.02, 0.1), r"per-step credit \(branch\) is worth its rollouts"),
    ((0.1, 0.05, 0.2), (-0.2, -0.3, -0.1), r"spend sampling on more traces \(branch\)"),
    ((0.1, 0.05, 0.2), (0.0, -0.1, 0.1), "is not told apart"),
    ((0.0, -0.1, 0.005), (-0.2, -0.3, -0.1), "does not pay here even for equal traces"),
    (
      (0.0, -0.1, 0.1),
      (-0.2, -0.3, -0.1),
      "not told apart: the interval for equal traces includes 0",
    ),
  ],
)
def test_advice_says_what_the_intervals_say(traces, sampling, says):
  best = {"traces": "step", "sampling": "branch"}
  placed = Placed(Interval(*traces), Interval(*sampling), best, {}, Chain())
  assert re.search(says, diagnose.advice(placed, 100))
  assert "only 3 prefixes were seen" in diagnose.advice(placed, 3)


def test_a_policy_is_diagnosed_from_the_command_line_and_sampled_once(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(diagnose, "QUICK", TINY)
  asked = [
    "values",
    "--diagnose",
    "--config",
    "configs/quickstart.py:smoke",
    "--workdir",
    str(tmp_path),
    "--problems",
    "12",
    "--traces",
    "3",
    "--rollouts",
    "3",
  ]
  assert __main__.main(asked) == 0
  said = capsys.readouterr().out
  assert "advice: " in said and "12 problems x 3 traces, 3 rollouts a prefix" in said
  folder = tmp_path / "diagnose/checkpoint"
  result = files.read_json(folder / "results.json")
  assert set(result["estimates"]) == {"success", "survival", "length", "contexts", "precision"}
  assert result["budget"] == {"problems": 24, "traces": 8, "rollouts": 8}
  rows = [
    json.loads(line) for line in (folder / "rollouts/rollouts.jsonl").read_text().splitlines()
  ]
  assert {row["correct"] for row in rows} == {True, False} and all(row["next"] for row in rows)
  journal = (folder / "rollouts/journal.jsonl").stat().st_mtime_ns
  assert __main__.main(asked) == 0
  assert (folder / "rollouts/journal.jsonl").stat().st_mtime_ns == journal
  assert files.read_json(folder / "results.json") == result


def test_what_cannot_be_diagnosed_is_said_by_name(tmp_path, capsys):
  asked = [
    "values",
    "--diagnose",
    "--config",
    "configs/quickstart.py:smoke",
    "--workdir",
    str(tmp_path),
  ]
  assert __main__.main([*asked, "--arm", "n00024_s0/sft", "--checkpoint", "there"]) == 1
  assert "name two policies" in capsys.readouterr().err
  assert __main__.main([*asked, "--arm", "n00024_s0/sft"]) == 1
  assert "has no trained policy of that name" in capsys.readouterr().err
  assert __main__.main([*asked, "--rollouts", "1"]) == 1
  assert "expected at least 10 problems" in capsys.readouterr().err
