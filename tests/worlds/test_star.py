import dataclasses
import itertools
from collections.abc import Callable

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


@st.composite
def stars(draw):
  arms = draw(st.integers(1, 5))
  length = draw(st.integers(1, 6))
  spare = draw(st.integers(2, 30))
  seed = draw(st.integers(0, 99))
  return Star(arms, length, labels=arms * length + 1 + spare, seed=seed)


@settings(max_examples=30, deadline=None)
@given(stars())
def test_a_problem_is_a_star_and_its_answer_walks_along_edges_from_the_centre_to_the_goal(config):
  for problem in star.problems(config, "train", 3):
    graph = star.parse(problem.question)
    nodes = problem.answer.split()
    heads = {edge.head for edge in graph.edges}
    from_centre = [edge for edge in graph.edges if edge.tail == graph.centre]
    assert len(graph.edges) == len(heads) == config.arms * config.length
    assert len(from_centre) == config.arms
    assert len(nodes) == config.length
    assert nodes[-1] == graph.goal
    assert set(itertools.pairwise([graph.centre, *nodes])) <= set(graph.edges)


def test_an_edge_is_one_token():
  config = Star(arms=2, length=5, labels=20)
  words = Words(star.vocabulary(config))
  for problem in star.problems(config, "train", 50):
    text = f"{problem.question} {problem.answer}"
    ids = words.encode(text)
    # The edges, then `/`, centre and goal, then the path.
    assert len(ids) == 2 * 5 + 3 + 5
    assert words.decode(ids) == text


def test_splits_share_no_graph_even_with_its_edges_in_another_order():
  tiny = Star(arms=2, length=1, labels=6)  # 120 problems: orders of their edges repeat
  splits_of = {}
  for split, seed in itertools.product(star.SPLITS, range(3)):
    config = dataclasses.replace(tiny, seed=seed)
    for problem in star.problems(config, split, 5):
      edges, goal = problem.question.split(" / ")
      graph = (tuple(sorted(edges.split())), goal)
      splits_of.setdefault(graph, set()).add(split)
  assert all(len(splits) == 1 for splits in splits_of.values())
  with pytest.raises(ValueError, match="about .* distinct problems; 500 were asked for"):
    star.problems(tiny, "train", 500)


def test_a_longer_list_begins_with_the_shorter_one_and_the_goal_is_at_any_arm():
  config = Star(arms=3, length=2, labels=40)
  many = star.problems(config, "train", 900)
  assert many[:30] == star.problems(config, "train", 30)
  assert len({problem.id for problem in many}) == 900
  counts = np.zeros(3)
  for problem in many:
    graph = star.parse(problem.question)
    first_nodes = [edge.head for edge in graph.edges if edge.tail == graph.centre]
    counts[first_nodes.index(graph.path()[0])] += 1
  np.testing.assert_allclose(counts / 900, 1 / 3, atol=0.06)


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
  """Any next node of the graph, with random probabilities after each prefix."""
  nodes = sorted({edge.head for edge in star.parse(question).edges})

  def policy(prefix):
    random = np.random.default_rng([seed, *map(int, prefix)])
    weights = random.dirichlet(np.full(len(nodes), 0.5))
    return dict(zip(nodes, weights.tolist()))

  return policy


def _brute_force(question, prefix, policy, length):
  """Success summed over all continuations to the path's length."""
  if len(prefix) == length:
    return float(prefix == star.parse(question).path())
  total = 0.0
  for node, probability in policy(prefix).items():
    total += probability * _brute_force(question, (*prefix, node), policy, length)
  return total


def test_the_exact_value_is_that_of_all_continuations_summed_up():
  for problem in star.problems(Star(2, 3, 20), "dev", 5):
    question = problem.question
    graph = star.parse(question)
    path = graph.path()
    incorrect = next(edge.head for edge in graph.edges if edge.head not in path)
    prefixes = ((), path[:1], path[:2], path, (incorrect,), (path[0], incorrect))
    for policy in (_random_policy(question, 1), star.shortcut(question)):
      for prefix in prefixes:
        value = star.exact_value(question, prefix, policy)
        assert value == pytest.approx(_brute_force(question, prefix, policy, 3), abs=1e-12)


def test_under_the_shortcut_the_first_node_decides():
  question = star.problems(Star(arms=4, length=3), "test", 1)[0].question
  graph = star.parse(question)
  policy = star.shortcut(question)
  path = graph.path()
  step_values = [star.exact_value(question, path[:i], policy) for i in range(4)]
  assert step_values == [0.25, 1.0, 1.0, 1.0]
  first_nodes = {edge.head for edge in graph.edges if edge.tail == graph.centre}
  for other in first_nodes - {path[0]}:
    assert star.exact_value(question, (other,), policy) == 0.0


@dataclasses.dataclass
class _Walker:
  """An engine that walks a star of two arms by a policy of its nodes."""

  words: Words
  policy_of: Callable[[str], star.NodePolicy]
  fingerprint: str = "walker"

  def generate(self, requests):
    for request in requests:
      question, _, rest = self.words.decode(request.prompt_ids).partition(" / ")
      centre, goal, *given_nodes = rest.split()
      policy = self.policy_of(f"{question} / {centre} {goal}")
      length = question.count(">") // 2
      samples = []
      for j in range(request.n):
        random = np.random.default_rng([request.seed, j])
        nodes = self._walk(policy, given_nodes, length, random)
        text = " ".join(nodes[len(given_nodes) :])
        samples.append(Sample(text, tuple(self.words.encode(text))))
      yield Result(request.id, tuple(samples))

  def _walk(self, policy, nodes, length, random):
    nodes = list(nodes)
    while len(nodes) < length:
      choice = policy(tuple(nodes))
      if not choice:
        break
      nodes.append(random.choice(list(choice), p=list(choice.values())))
    return nodes


POLICIES = {
  "shortcut": star.shortcut,
  "random": lambda question: _random_policy(question, 3),
}


@pytest.mark.parametrize("name", ["shortcut", "random"])
def test_monte_carlo_values_are_those_computed_exactly(name):
  config = Star(2, 3, 12)
  policy_of = POLICIES[name]
  words = Words(star.vocabulary(config))
  problems = {problem.id: problem for problem in star.problems(config, "train", 40)}
  traces = []
  for problem in problems.values():
    steps = tuple((token,) for token in words.encode(problem.answer))
    prompt = tuple(words.encode(problem.question))
    trace = SampledTrace(problem.id, problem.answer, steps, Verdict("equal"))
    traces.append(PromptedTrace(prompt, trace))

  def judge(problem_id, given_ids, sample):
    answer = words.decode((*given_ids, *sample.ids))
    if answer == problems[problem_id].answer:
      return Verdict("equal")
    return Verdict("different")

  engine = _Walker(words, policy_of)
  config_of_values = ValueConfig(rollouts=64, block=64)
  estimated = values.estimate(traces, engine.generate, judge, config_of_values).values
  errors = []
  variances = []
  for row in itertools.chain.from_iterable(estimated):
    question = problems[row.problem_id].question
    nodes = problems[row.problem_id].answer.split()[: row.step]
    exact = star.exact_value(question, nodes, policy_of(question))
    errors.append(row.q - exact)
    # The last step has its reward as its value, without noise.
    if row.step < 3:
      variances.append(exact * (1 - exact) / 64)
  assert sum(variances) > 0
  assert abs(sum(errors)) < 3.5 * np.sqrt(sum(variances))
  assert sum(error**2 for error in errors) == pytest.approx(sum(variances), rel=0.6)
