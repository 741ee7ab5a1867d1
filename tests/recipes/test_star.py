import dataclasses

import numpy as np
import pytest

from synthjax import config, files
from synthjax.config.worlds import Star
from synthjax.data import trees
from synthjax.job import Job
from synthjax.math_study import preference_data
from synthjax.math_study.cell import TrainedPolicy
from synthjax.recipes import star as recipe
from synthjax.rollout.requests import Result, Sample
from synthjax.worlds import star

GRAPH = {"arms": 2, "length": 3, "labels": 9}
MODEL = {
  "d_model": 32,
  "layers": 1,
  "heads": 1,
  "kv_heads": 1,
  "head_dim": 32,
  "mlp_dim": 32,
  "mlp": "relu",
  "tie_embeddings": True,
}


def _job(tmp_path, **knobs):
  study = {
    "graphs": (GRAPH,),
    "problems": 20,
    "early_steps": 1,
    "test_problems": 40,
    "valued": 60,
    "rollouts": 16,
    "explored": 60,
    "samples": 4,
    **knobs,
  }
  train = {"batch_size": 8, "steps": 2}  # tests have eight devices
  return Job(
    config.resolve(
      {
        "recipe": "star",
        "model": MODEL,
        "data": {"seq_len": 64},
        "train": train,
        "star": study,
        "study": {"preference": train},
      }
    ),
    tmp_path,
  )


class _Walker:
  """An engine whose policy is the shortcut."""

  def __init__(self, words):
    self.words = words

  def generate(self, requests):
    for request in requests:
      question, _, rest = self.words.decode(request.prompt_ids).partition(" / ")
      centre, goal, *given = rest.split()
      policy, samples = star.shortcut(f"{question} / {centre} {goal}"), []
      for k in range(request.n):
        random, nodes = np.random.default_rng([request.seed, k, len(given)]), list(given)
        while len(nodes) < GRAPH["length"] and (choice := policy(tuple(nodes))):
          nodes.append(random.choice(list(choice), p=list(choice.values())))
        new = nodes[len(given) :]
        samples.append(
          Sample(" ".join(new), tuple(self.words.encode(" ".join(new))), finish="stop")
        )
      yield Result(request.id, tuple(samples))


@pytest.fixture
def walking(tmp_path, monkeypatch):
  """The lab of a policy that takes the shortcut."""
  (tmp_path / "checkpoints").mkdir()
  walker = TrainedPolicy("walker", str(tmp_path / "checkpoints"), 0, 0)
  monkeypatch.setattr(recipe, "engine_of", lambda experiment, words, policy: _Walker(words))
  monkeypatch.setattr(recipe, "_sft", lambda lab, early: walker)
  return recipe._open(_job(tmp_path), Star(**GRAPH))


def test_a_policy_in_the_shortcut_is_right_once_in_d_and_its_monte_carlo_values_are_the_exact_ones(
  walking,
):
  score = recipe._score(walking, recipe._sft(walking, early=False))
  assert score["walks"] == 1.0 and score["accuracy"] == score["first"] == pytest.approx(
    0.5, abs=0.25
  )
  values = recipe._values(walking)
  assert (
    list(values) == ["0", "1", "2"]
    and values["0"]["exact"] == 0.5
    and values["0"]["estimate"] == pytest.approx(0.5, abs=0.08)
  )
  # At a half and 16 rollouts 92 % of Wilson's intervals hold it.
  assert values["0"]["covered"] > 0.8 and values["1"]["covered"] == values["2"]["covered"] == 1.0
  assert values["1"]["estimate"] == values["1"]["exact"]


def test_all_of_the_advantage_is_at_the_first_node_and_pairs_are_made_there(walking):
  problem = walking.cell.problems[-1]
  sampled = recipe._sample(walking, recipe._sft(walking, early=False), [problem], 8, 1.0)[
    problem.id
  ]
  samples = recipe._valued(walking, problem, sampled)
  rewards = {valued.trace.reward for valued in samples.traces}
  assert rewards == {0, 1}
  for valued in samples.traces:
    first = 0.5 if valued.trace.reward else -0.5
    np.testing.assert_allclose(valued.advantages(), [first, 0.0, 0.0])
  roots = preference_data.paired(
    walking.cell, "x", [samples], dataclasses.replace(walking.cell.study.pairs, mode="branch")
  )
  words = walking.cell.tokenizer
  for root in roots:
    chosen = [i for node in trees.nodes(root) if node.side > 0 for i in node.tokens]
    rejected = [i for node in trees.nodes(root) if node.side < 0 for i in node.tokens]
    assert (
      words.decode(root.tokens) == problem.inputs
      and chosen == [*words.encode(problem.answer), words.eos_id]
      and len(rejected) == 1
    )
    assert (
      rejected[0] in words.encode(" ".join(sample.text.split()[0] for sample in sampled))
      and rejected[0] != chosen[0]
    )
  assert roots


def test_the_recipe_trains_values_and_tries_and_a_second_run_does_nothing_again(tmp_path):
  attempts = ({"name": "awr_early", "arm": "awr", "early": True},)
  job = _job(tmp_path, test_problems=5, valued=3, rollouts=2, explored=6, attempts=attempts)
  found = recipe.run(job)
  assert [row["name"] for row in found["attempts"]] == ["awr_early"] and found["sft"][0][
    "arms"
  ] == 2
  assert found["attempts"][0]["before"] == found["early"]
  written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")}
  assert {"sft", "sft_early", "values", "awr_early"} <= {path.parent.name for path in written}
  assert recipe.run(job) == found == files.read_json(tmp_path / "results.json")
  assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")}
