import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthjax.config.credit import ValueConfig
from synthjax.config.worlds import Star
from synthjax.credit import values
from synthjax.credit.traces import PromptedTrace, SampledTrace
from synthjax.data.tokenizers import Words
from synthjax.records import Verdict
from synthjax.rollout.requests import Result, Sample
from synthjax.worlds import star

stars = st.builds(
  lambda arms, length, spare, seed: Star(arms, length, arms * length + 1 + spare, seed),
  st.integers(1, 5),
  st.integers(1, 6),
  st.integers(2, 30),
  st.integers(0, 99),
)


@settings(max_examples=30, deadline=None)
@given(stars)
def test_a_problem_is_a_star_and_its_answer_walks_along_edges_from_the_centre_to_the_goal(knobs):
  for problem in star.problems(knobs, "train", 3):
    graph, nodes = star.parse(problem.question), problem.answer.split()
    assert len(graph.edges) == knobs.arms * knobs.length and len(
      {b for _, b in graph.edges}
    ) == len(graph.edges)
    assert (
      sum(a == graph.centre for a, _ in graph.edges) == knobs.arms
      and len(nodes) == knobs.length
      and nodes[-1] == graph.goal
    )
    assert set(itertools.pairwise([graph.centre, *nodes])) <= set(graph.edges)


def test_an_edge_is_one_token():
  knobs = Star(arms=2, length=5, labels=20)
  words = Words(star.vocabulary(knobs))
  for problem in star.problems(knobs, "train", 50):
    ids = words.encode(f"{problem.question} {problem.answer}")
    assert len(ids) == 2 * 5 + 3 + 5 and words.decode(ids) == f"{problem.question} {problem.answer}"


def test_splits_share_no_graph_even_with_its_edges_in_another_order():
  tiny = Star(arms=2, length=1, labels=6)  # 120 problems: orders of their edges repeat
  found = {}
  for split, seed in itertools.product(star.SPLITS, range(3)):
    for problem in star.problems(dataclasses.replace(tiny, seed=seed), split, 5):
      edges, goal = problem.question.split(" / ")
      found.setdefault((tuple(sorted(edges.split())), goal), set()).add(split)
  assert all(len(splits) == 1 for splits in found.values())
  with pytest.raises(ValueError, match="about .* distinct problems; 500 were asked for"):
    star.problems(tiny, "train", 500)


def test_a_longer_list_begins_with_the_shorter_one_and_the_goal_is_at_any_arm():
  knobs = Star(arms=3, length=2, labels=40)
  many = star.problems(knobs, "train", 900)
  assert many[:30] == star.problems(knobs, "train", 30) and len({p.id for p in many}) == 900
  first = [star.parse(p.question) for p in many]
  place = [[b for a, b in g.edges if a == g.centre].index(g.path()[0]) for g in first]
  np.testing.assert_allclose(np.bincount(place) / 900, 1 / 3, atol=0.06)


@pytest.mark.parametrize("bad", ["", "1>2 / 1", "1>2 / 1 2 ", "a>b / a b"])
def test_what_is_no_star_is_refused(bad):
  with pytest.raises(ValueError, match="not a problem of the star"):
    star.parse(bad)


@pytest.mark.parametrize("text", ["1>2 / 1 3", "2>3 3>2 / 1 2"])
def test_a_goal_that_no_edges_lead_to_is_refused(text):
  with pytest.raises(ValueError, match="no edges lead from centre 1"):
    star.parse(text).path()


def test_knobs_out_of_range_are_refused():
  with pytest.raises(ValueError, match=r"Star.labels is 10; expected at least 26"):
    Star(labels=10)


def _random_policy(question, seed):
  """Any next node of the graph, with random probabilities of each prefix."""
  nodes = sorted({b for _, b in star.parse(question).edges})

  def policy(prefix):
    weights = np.random.default_rng([seed, *map(int, prefix)]).dirichlet(np.full(len(nodes), 0.5))
    return dict(zip(nodes, weights.tolist()))

  return policy


def _brute_force(question, prefix, policy, length):
  """Success summed over all continuations to the path's length."""
  if len(prefix) == length:
    return float(prefix == star.parse(question).path())
  return sum(
    p * _brute_force(question, (*prefix, node), policy, length)
    for node, p in policy(prefix).items()
  )


def test_the_exact_value_is_that_of_all_continuations_summed_up():
  for problem in star.problems(Star(2, 3, 20), "dev", 5):
    path = star.parse(problem.question).path()
    wrong = next(b for a, b in star.parse(problem.question).edges if b not in path)
    for policy in (_random_policy(problem.question, 1), star.shortcut(problem.question)):
      for prefix in ((), path[:1], path[:2], path, (wrong,), (path[0], wrong)):
        assert star.exact_value(problem.question, prefix, policy) == pytest.approx(
          _brute_force(problem.question, prefix, policy, 3), abs=1e-12
        )


def test_under_the_shortcut_the_first_node_decides():
  problem = star.problems(Star(arms=4, length=3), "test", 1)[0]
  graph = star.parse(problem.question)
  policy, path = star.shortcut(problem.question), graph.path()
  assert [star.exact_value(problem.question, path[:i], policy) for i in range(4)] == [
    0.25,
    1.0,
    1.0,
    1.0,
  ]
  other = next(b for a, b in graph.edges if a == graph.centre and b != path[0])
  assert star.exact_value(problem.question, (other,), policy) == 0.0


@dataclasses.dataclass
class _Walker:
  """An engine that walks a star by a policy of its nodes."""

  words: Words
  policy_of: object
  fingerprint: str = "walker"

  def generate(self, requests):
    for request in requests:
      question, _, rest = self.words.decode(request.prompt_ids).partition(" / ")
      centre, goal, *given = rest.split()
      policy, samples = self.policy_of(f"{question} / {centre} {goal}"), []
      length = question.count(">") // 2  # two arms
      for j in range(request.n):
        random, nodes = np.random.default_rng([request.seed, j]), list(given)
        while len(nodes) < length and (choice := policy(tuple(nodes))):
          nodes.append(random.choice(list(choice), p=list(choice.values())))
        samples.append(
          Sample(
            " ".join(nodes[len(given) :]), tuple(self.words.encode(" ".join(nodes[len(given) :])))
          )
        )
      yield Result(request.id, tuple(samples))


@pytest.mark.parametrize("name", ["shortcut", "random"])
def test_monte_carlo_values_are_those_computed_exactly(name):
  knobs, policy_of = (
    Star(2, 3, 12),
    {"shortcut": star.shortcut, "random": lambda q: _random_policy(q, 3)}[name],
  )
  words, problems = (
    Words(star.vocabulary(knobs)),
    {p.id: p for p in star.problems(knobs, "train", 40)},
  )
  traces = []
  for p in problems.values():
    steps = tuple((i,) for i in words.encode(p.answer))
    trace = SampledTrace(p.id, p.answer, steps, Verdict("equal"))
    traces.append(PromptedTrace(tuple(words.encode(p.question)), trace))
  judge = lambda name, given, sample: Verdict(
    "equal" if words.decode((*given, *sample.ids)) == problems[name].answer else "different"
  )
  rows = values.estimate(
    traces, _Walker(words, policy_of).generate, judge, ValueConfig(rollouts=64, block=64)
  ).values
  exact = {
    (name, i): star.exact_value(p.question, p.answer.split()[:i], policy_of(p.question))
    for name, p in problems.items()
    for i in range(4)
  }
  errors = [row.q - exact[row.problem_id, row.step] for of_trace in rows for row in of_trace]
  spread = [
    exact[row.problem_id, row.step] * (1 - exact[row.problem_id, row.step]) / 64
    for of_trace in rows
    for row in of_trace
    if row.step < 3
  ]
  assert abs(sum(errors)) < 3.5 * np.sqrt(sum(spread)) and sum(spread) > 0
  assert sum(e**2 for e in errors) == pytest.approx(sum(spread), rel=0.6)
