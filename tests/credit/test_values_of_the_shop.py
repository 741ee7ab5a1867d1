"""Step values of a policy of the shop whose success after any text can be summed up exactly.

Its lines go on from the line before, with a result that may be off by one: two errors may cancel.
"""

import itertools
import math

import numpy as np
import pytest

from synthjax.config.credit import ValueConfig
from synthjax.config.worlds import World
from synthjax.credit import values
from synthjax.credit.schedules import Count
from synthjax.credit.traces import PromptedTrace, SampledTrace
from synthjax.data.tokenizers import Words
from synthjax.records import Verdict
from synthjax.rollout.requests import Result, Sample
from synthjax.worlds import shop


def _lines(question, text):
  """{next line: probability} after a text, {} at its end."""
  total, events, _ = shop.parse(question)
  lines = [line.split() for line in text.split(" ;") if line.strip()]
  if lines and lines[-1][0] == "Answer:":
    return {}
  if lines:
    total = int(lines[-1][-1])
  if len(lines) == len(events):
    return {f"Answer: {total}": 1.0}
  event = events[len(lines)]
  exact = total + event.sign * event.amount
  results = [result for result in (exact - 1, exact, exact + 1) if 0 <= result <= 20] or [0]
  weights = np.random.default_rng([*text.encode(), len(lines)]).dirichlet(np.ones(len(results)))
  operation = "+" if event.sign > 0 else "-"
  choices = {}
  for result, p in zip(results, weights.tolist()):
    choices[f"{total} {operation} {event.amount} = {result} ;"] = p
  return choices


def _success(problem, text):
  """Exactly, over all continuations."""
  choices = _lines(problem.question, text)
  if not choices:
    return float(text.endswith(f"Answer: {problem.answer}"))
  return sum(p * _success(problem, f"{text} {line}".strip()) for line, p in choices.items())


def _draw(question, text, rng):
  lines = []
  while choices := _lines(question, " ".join([text, *lines]).strip()):
    lines.append(rng.choice(list(choices), p=list(choices.values())))
  return lines


def _variance(n, best_of, p):
  """Of the estimate from n rollouts with success probability p, summed over all outcomes."""
  variance = 0.0
  for c in range(n + 1):
    share = math.comb(n, c) * p**c * (1 - p) ** (n - c)
    variance += share * (Count(n, n, c).value(best_of) - 1 + (1 - p) ** best_of) ** 2
  return variance


def _trace(problem, words, seed):
  """A trace of the policy."""
  lines = _draw(problem.question, "", np.random.default_rng(seed))
  trace = SampledTrace(
    problem_id=problem.id,
    text=" ".join(lines),
    steps=tuple(tuple(words.encode(line)) for line in lines),
    verdict=_verdict(problem, lines[-1]),
  )
  return PromptedTrace(tuple(words.encode(problem.question)), trace)


def _verdict(problem, text):
  correct = text.endswith(f"Answer: {problem.answer}")
  return Verdict("equal" if correct else "different")


@pytest.mark.parametrize("best_of", [1, 5])
def test_estimates_are_those_of_all_continuations_summed_up(best_of):
  world = World(max_events=3)
  words = Words(shop.vocabulary(world))
  problems = {problem.id: problem for problem in shop.problems(world, "train", 60)}

  def generate(requests):
    for request in requests:
      question, mark, text = words.decode(request.prompt_ids).partition("?")
      samples = []
      for j in range(request.n):
        rng = np.random.default_rng([request.seed, j])
        continuation = " ".join(_draw(question + mark, text.strip(), rng))
        samples.append(Sample(continuation, tuple(words.encode(continuation))))
      yield Result(request.id, tuple(samples))

  def judge(name, given, sample):
    return _verdict(problems[name], words.decode((*given, *sample.ids)))

  traces = []
  for number, problem in enumerate(problems.values()):
    traces.append(_trace(problem, words, number))
  cfg = ValueConfig(rollouts=24, best_of=best_of)
  result = values.estimate(traces, generate, judge, cfg)
  error = squared = expected = 0.0
  for prompted, rows in zip(traces, result.values):
    for row in rows[:-1]:
      given = words.decode(itertools.chain(*prompted.trace.steps[: row.step]))
      p = _success(problems[row.problem_id], given)
      off = row.q - 1 + (1 - p) ** best_of
      error += off
      squared += off**2
      expected += _variance(24, best_of, p)
  assert {prompted.trace.reward for prompted in traces} == {0, 1}
  assert expected > 0
  # Prefixes of different problems are independent; those of one problem are different rollouts.
  assert abs(error) < 3.5 * math.sqrt(expected)
  assert squared == pytest.approx(expected, rel=0.6)
