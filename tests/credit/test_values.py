"""Step values of simulated traces, whose prefixes have known success probabilities."""

import collections
import dataclasses
import itertools
import math
import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthjax import files
from synthjax.bench import pits as simulated
from synthjax.config.credit import ValueConfig
from synthjax.credit import values
from synthjax.credit.schedules import SCHEDULES, Count
from synthjax.credit.traces import PromptedTrace, SampledTrace
from synthjax.records import StepValue, Verdict
from synthjax.rollout import journal
from synthjax.rollout.requests import Result, Sample

schedules = pytest.mark.parametrize("schedule", SCHEDULES)

VERDICTS = {1: Verdict("equal"), 0: Verdict("different"), None: Verdict("undecided", "timeout")}


@dataclasses.dataclass
class Recording:
  """An engine that notes what it was asked, and answers in any order."""

  engine: simulated.SimulatedPolicy
  shuffle: int | None = None
  fingerprint: str = "recording"

  def __post_init__(self):
    self.asked = []
    self.calls = 0

  def generate(self, requests):
    requests = list(requests)
    self.calls += 1
    self.asked += requests
    results = list(self.engine.generate(requests))
    if self.shuffle is not None:
      random.Random(self.shuffle).shuffle(results)
    yield from results


def _prompted(problem_id, prompt_ids, steps, reward=0, complete=True):
  trace = SampledTrace(problem_id, "", steps, VERDICTS[reward], complete)
  return PromptedTrace(prompt_ids, trace)


def _case(name, success, reward=0, complete=True):
  """(trace, {prefix: success probability}) with these probabilities after 0, 1, ... steps.

  The end of a trace that was cut off has one too, as it can be rolled out from.
  """
  count = len(success) if complete else len(success) - 1
  steps = tuple((i,) for i in range(count))
  table = {(name, *range(i)): p for i, p in enumerate(success)}
  return _prompted(str(name), (name,), steps, reward, complete), table


def _joined(cases):
  """The success probabilities of all cases."""
  table = {}
  for _, of_case in cases:
    table |= of_case
  return table


def _run(cases, cfg, shuffle=None):
  """(values, recording engine) of traces with their success probabilities."""
  engine = Recording(simulated.SimulatedPolicy(_joined(cases)), shuffle)
  traces = [trace for trace, _ in cases]
  return values.estimate(traces, engine.generate, simulated.judge, cfg), engine


def _noisy(count, seed, steps=(1, 8)):
  """Correct, incorrect and cut-off traces, with values that go up and down."""
  rng = np.random.default_rng(seed)
  cases = []
  for number in range(count):
    length = rng.integers(steps[0], steps[1] + 1)
    success = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0], length).tolist()
    reward = int(rng.integers(2))
    complete = bool(rng.integers(4))
    cases.append(_case(number, success, reward, complete))
  return cases


def _spread(n, best_of, p):
  """Standard deviation of the estimate from n rollouts at success probability p."""
  variance = 0.0
  for c in range(n + 1):
    share = math.comb(n, c) * p**c * (1 - p) ** (n - c)
    variance += share * (Count(n, n, c).value(best_of) - 1 + (1 - p) ** best_of) ** 2
  return math.sqrt(variance)


@pytest.mark.parametrize("best_of", [1, 5])
@pytest.mark.parametrize("p", [0.05, 0.4, 0.9])
def test_estimates_are_unbiased(best_of, p):
  cases = [_case(i, [p, p / 2]) for i in range(1500)]
  result, _ = _run(cases, ValueConfig(rollouts=8, best_of=best_of, block=8))
  rows = list(itertools.chain(*result.values))
  for step, rate in ((0, p), (1, p / 2)):
    q = np.array([row.q for row in rows if row.step == step])
    error = _spread(8, best_of, rate) / math.sqrt(len(q))
    assert abs(q.mean() - (1 - (1 - rate) ** best_of)) < 3.5 * error


@pytest.mark.parametrize(("n", "best_of"), [(8, 1), (16, 1), (8, 5), (16, 5), (5, 5)])
def test_the_squared_standard_error_is_the_mean_squared_error_over_all_success_rates(n, best_of):
  rates = (np.arange(2000) + 0.5) / 2000
  squared_error = reported = 0.0
  for c in range(n + 1):
    count = Count(n, n, c)
    share = math.comb(n, c) * rates**c * (1 - rates) ** (n - c)
    squared_error += np.mean(share * (count.value(best_of) - (1 - (1 - rates) ** best_of)) ** 2)
    reported += np.mean(share) * count.standard_error(best_of) ** 2
    assert count.standard_error(best_of) > 0
  assert reported == pytest.approx(squared_error, rel=0.15)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 1), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_advantages_add_up_to_the_reward_less_the_value_of_the_problem(success, reward, best_of):
  result, _ = _run([_case(0, success, reward)], ValueConfig(rollouts=4, best_of=best_of))
  first, *rest = result.values[0]
  assert sum(row.advantage for row in rest) == pytest.approx(reward - first.q)
  assert first.advantage is None
  assert (rest[-1].q, rest[-1].standard_error, rest[-1].n) == (reward, 0.0, 0)


@schedules
@pytest.mark.parametrize("block", [1, 2, 3, 8])
def test_all_schedules_find_a_pit_before_which_every_and_after_which_no_rollout_is_correct(
  schedule, block
):
  cases = []
  for length in range(1, 9):
    for pit in range(1, length + 1):
      success = [float(i < pit) for i in range(length + 1)]
      cases.append(_case(len(cases), success[:-1]))
      cases.append(_case(len(cases), success, complete=False))
    cases.append(_case(len(cases), [1.0] * length, reward=1))
    cases.append(_case(len(cases), [1.0] * length, complete=False))
    cases.append(_case(len(cases), [0.0] * length))  # lost from the beginning
  reference, _ = _run(cases, ValueConfig())
  result, _ = _run(cases, ValueConfig(schedule=schedule, block=block))
  assert result.pits == reference.pits
  assert set(result.pits) == {None, *range(1, 9)}
  assert result.spent.rollouts <= reference.spent.rollouts


@pytest.mark.parametrize("best_of", [1, 3])
def test_stopping_at_the_first_fail_loses_no_pit_whatever_the_values(best_of):
  cases = _noisy(400, 0)
  full, _ = _run(cases, ValueConfig(schedule="full", best_of=best_of))
  first_fail, _ = _run(cases, ValueConfig(schedule="first_fail", best_of=best_of))
  assert first_fail.pits == full.pits
  assert len(set(full.pits)) > 4
  assert first_fail.spent.rollouts < full.spent.rollouts


@pytest.mark.parametrize("world", ["clean", "noisy"])
def test_the_sequential_search_takes_40_percent_of_the_rollouts_for_95_percent_of_the_pits(world):
  traces = simulated.simulate(world, 250, 5)
  generate = simulated.SimulatedPolicy(traces.success).generate
  compared = values.compare(traces.traces, generate, simulated.judge, ValueConfig())
  assert compared["full"].agreement == compared["first_fail"].agreement == 1.0
  assert compared["sequential"].times_fewer > 2.5
  assert compared["sequential"].agreement > 0.95
  assert compared["binary"].times_fewer > 1.8
  assert compared["binary"].agreement > 0.88


def test_bisection_values_a_logarithm_of_the_prefixes():
  cfg = ValueConfig(schedule="binary", block=8)
  for length in (8, 16, 32):
    for pit in range(1, length + 1):
      result, engine = _run([_case(0, [float(i < pit) for i in range(length)])], cfg)
      assert result.pits == [pit]
      assert len(engine.asked) <= math.log2(length) + 1


@schedules
def test_what_is_reported_is_what_was_asked(schedule):
  result, engine = _run(_noisy(60, 1), ValueConfig(rollouts=7, block=3, schedule=schedule))
  rollouts = sum(request.n for request in engine.asked)
  assert result.spent == values.Spent(
    rounds=engine.calls, requests=len(engine.asked), rollouts=rollouts, tokens=rollouts
  )
  assert rollouts == sum(row.n for row in itertools.chain(*result.values))
  assert len({request.id for request in engine.asked}) == len(engine.asked)


def test_the_full_schedule_takes_one_call_and_all_rollouts_of_every_prefix():
  cases = _noisy(40, 2)
  result, engine = _run(cases, ValueConfig(rollouts=7, block=3))
  assert engine.calls == 1
  assert result.spent.rollouts == 7 * len(_joined(cases))
  for rows, (prompted, table) in zip(result.values, cases, strict=True):
    assert [row.n for row in rows] == [7] * len(table) + [0] * prompted.trace.complete


@schedules
def test_prefixes_that_traces_of_a_problem_share_are_valued_once(schedule):
  one = _prompted("p", (9,), ((1,), (2, 3), (4,)))
  same_tokens_in_other_steps = _prompted("p", (9,), ((1,), (2,), (3,), (5,)))
  table = {(9,): 1.0, (9, 1): 0.9, (9, 1, 2): 0.5, (9, 1, 2, 3): 0.2}
  cfg = ValueConfig(schedule=schedule, block=8)
  cases = [(one, table), (same_tokens_in_other_steps, table), (one, table)]
  result, engine = _run(cases, cfg)
  prefixes = [request.prompt_ids for request in engine.asked]
  assert len(set(prefixes)) == len(prefixes)
  assert result.values[0] == [dataclasses.replace(row, trace=0) for row in result.values[2]]
  alone, _ = _run(cases[1:2], cfg)
  assert result.values[1] == [dataclasses.replace(row, trace=1) for row in alone.values[0]]


def test_the_same_tokens_of_another_problem_are_other_rollouts():
  one, table = _case(0, [0.5] * 6)
  other = _prompted("other", (0,), tuple((i,) for i in range(6)))
  result, engine = _run([(one, table), (other, table)], ValueConfig(rollouts=16))
  assert len({request.seed for request in engine.asked}) == len(engine.asked) == 2 * 6 * 8
  assert [row.c for row in result.values[0]] != [row.c for row in result.values[1]]


def _unnumbered(rows):
  return [dataclasses.replace(row, trace=0) for row in rows]


@schedules
def test_values_depend_neither_on_the_order_nor_on_the_other_traces(schedule):
  cases = _noisy(50, 3)
  for number, (prompted, table) in enumerate(_noisy(20, 3)):
    steps = (*prompted.trace.steps[:1], (77,))  # another second step of the same problem
    branch = _prompted(str(number), (number,), steps, reward=1)
    cases.append((branch, {(number, 0): 0.5, **table}))
  cfg = ValueConfig(schedule=schedule)
  whole, _ = _run(cases, cfg, shuffle=1)
  backwards, _ = _run(cases[::-1], cfg, shuffle=2)
  assert list(map(_unnumbered, whole.values)) == list(map(_unnumbered, backwards.values[::-1]))
  assert whole.correct == backwards.correct[::-1]
  table = _joined(cases)
  for number in (0, 7, 60):
    alone, _ = _run([(cases[number][0], table)], cfg)
    assert _unnumbered(alone.values[0]) == _unnumbered(whole.values[number])
    assert alone.pits[0] == whole.pits[number]
  another_seed, _ = _run(cases, dataclasses.replace(cfg, seed=1))
  assert another_seed.values != whole.values


def test_a_rollout_is_the_same_under_every_schedule():
  cases = _noisy(40, 4)
  full, _ = _run(cases, ValueConfig(schedule="full"))
  first_fail, _ = _run(cases, ValueConfig(schedule="first_fail"))
  rows = {(row.trace, row.step): row for row in itertools.chain(*full.values)}
  for row in itertools.chain(*first_fail.values):
    reference = rows[row.trace, row.step]
    if row.n:
      assert (row.n, row.c, row.q) == (reference.n, reference.c, reference.q)


def test_undecided_verdicts_are_left_out_and_counted_and_a_rollout_without_an_answer_has_failed():
  verdicts = [
    Verdict("equal"),
    Verdict("different"),
    Verdict("undecided", "timeout"),
    Verdict("undecided", "no-answer"),
  ]

  def generate(requests):
    for request in requests:
      samples = [Sample("", ((request.seed + j) % 4,)) for j in range(request.n)]
      yield Result(request.id, tuple(samples))

  result = values.estimate(
    [_prompted("p", (1,), ((2,),))],
    generate,
    lambda name, given, sample: verdicts[sample.ids[0]],
    ValueConfig(rollouts=8, block=4),
  )
  first, second = result.values[0]
  assert (first.n, first.c, first.undecided) == (6, 2, 2)
  assert first.q == pytest.approx(2 / 6)
  assert (result.spent.undecided, result.spent.unanswered) == (2, 2)
  assert second.advantage == -first.q


@schedules
def test_a_prefix_with_too_few_decided_rollouts_has_no_value(schedule):
  trace, table = _case(0, [1.0, 1.0, 0.0, 0.0])

  def judge(name, given, sample):
    if len(given) == 1:
      return Verdict("undecided", "memory")
    return simulated.judge(name, given, sample)

  cfg = ValueConfig(schedule=schedule, best_of=2)
  result = values.estimate([trace], simulated.SimulatedPolicy(table).generate, judge, cfg)
  rows = {row.step: row for row in result.values[0]}
  assert rows[1].q is rows[1].standard_error is rows[1].advantage is None
  assert rows[1].undecided > 0 == rows[1].n
  assert (rows[2].q, rows[2].advantage) == (0.0, None)
  assert result.pits == [None]  # how far the value fell is not known
  for row in rows.values():
    assert StepValue.from_json(row.to_json()) == row


@pytest.mark.parametrize("reward", [0, 1, None])
def test_a_trace_that_has_ended_is_not_rolled_out_from(reward):
  trace, table = _case(0, [1.0, 0.5], reward)
  result, engine = _run([(trace, table)], ValueConfig())
  assert {request.prompt_ids for request in engine.asked} == set(table)
  assert len(result.values[0]) == 3
  assert result.values[0][-1].q == reward


def test_traces_without_steps_have_the_value_of_their_problem():
  trace = _prompted("p", (1,), (), complete=False)
  result, _ = _run([(trace, {(1,): 1.0})], ValueConfig())
  assert [(row.step, row.q) for row in result.values[0]] == [(0, 1.0)]
  assert result.pits == [None]


def test_the_first_correct_rollouts_of_each_prefix_come_back():
  result, _ = _run([_case(0, [0.5, 0.0, 0.9])], ValueConfig(keep=2))
  (correct,) = result.correct
  assert sorted(correct) == [0, 2]
  for samples in correct.values():
    assert [sample.ids for sample in samples] == [(1,), (1,)]
  result, _ = _run([_case(0, [0.5, 0.0])], ValueConfig(keep=0))
  assert result.correct[0] == {0: ()}


def test_verification_overlaps_with_sampling():
  judged = threading.Event()

  def generate(requests):
    first, *others = requests
    yield Result(first.id, (Sample("1", (1,)),))
    assert judged.wait(10), "nothing was judged while the engine was sampling"
    for request in others:
      yield Result(request.id, (Sample("1", (1,)),))

  def judge(name, given, sample):
    judged.set()
    return Verdict("equal")

  trace = _prompted("p", (1,), ((2,), (3,)), reward=1)
  result = values.estimate([trace], generate, judge, ValueConfig(rollouts=1, block=1))
  assert [row.q for row in result.values[0]] == [1.0, 1.0, 1.0]


def test_an_error_of_the_judge_ends_the_job():
  def judge(name, given, sample):
    raise OSError("the worker is gone")

  trace, table = _case(0, [0.5] * 5)
  with pytest.raises(OSError, match="the worker is gone"):
    values.estimate([trace], simulated.SimulatedPolicy(table).generate, judge, ValueConfig())


def test_refused_requests_are_counted_and_the_others_go_on():
  trace, table = _case(0, [1.0, 1.0, 0.0])
  error = "prompt is 2 tokens; expected at most 1"

  def generate(requests):
    for request in requests:
      if len(request.prompt_ids) == 2:
        yield Result(request.id, error=error)
      else:
        yield from simulated.SimulatedPolicy(table).generate([request])

  result = values.estimate([trace], generate, simulated.judge, ValueConfig(block=8))
  assert [row.q for row in result.values[0]] == [1.0, None, 0.0, 0.0]
  spent = result.spent
  assert (spent.refused, spent.error, spent.rollouts) == (1, error, 16)


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda results: results[1:], "1 of 4 requests unanswered"),
    (lambda results: [*results, results[0]], "not one of the 0 that are open"),
    (
      lambda results: [dataclasses.replace(results[0], samples=()), *results[1:]],
      "0 samples, expected 2",
    ),
  ],
)
def test_an_engine_that_breaks_the_protocol_is_named(spoil, message):
  trace, table = _case(0, [0.5])

  def generate(requests):
    return iter(spoil(list(simulated.SimulatedPolicy(table).generate(requests))))

  with pytest.raises(files.DataError, match=message):
    values.estimate([trace], generate, simulated.judge, ValueConfig())


@schedules
def test_a_killed_job_goes_on_from_its_journal_with_the_same_values_and_samples_nothing_twice(
  schedule, tmp_path
):
  cases, cfg = _noisy(25, 6), ValueConfig(schedule=schedule)
  whole, engine = _run(cases, cfg)
  done = collections.Counter()

  class Dying(simulated.SimulatedPolicy):
    def generate(self, requests):
      for number, result in enumerate(super().generate(requests)):
        if number == 9:
          raise KeyboardInterrupt
        done[result.id] += 1
        yield result

  dying = Dying(_joined(cases))
  traces = [trace for trace, _ in cases]
  for attempt in range(100):  # noqa: B007 - a job that never ends fails below
    try:
      result = values.estimate(
        traces,
        lambda requests: journal.generate(dying, requests, tmp_path / "j.jsonl"),
        simulated.judge,
        cfg,
      )
      break
    except KeyboardInterrupt:
      continue
  assert attempt > 2
  assert result == whole
  assert set(done.values()) == {1}
  assert set(done) == {request.id for request in engine.asked}


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"rollouts": 0}, "ValueConfig.rollouts is 0; expected int, 1 to 65536"),
    ({"best_of": 9}, "ValueConfig.best_of is 9; expected at most rollouts=8"),
    ({"schedule": "fast"}, "expected one of full"),
    ({"confidence": 0.2}, "ValueConfig.confidence is 0.2"),
    ({"keep": 9}, "ValueConfig.keep is 9"),
  ],
)
def test_settings_out_of_range_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    ValueConfig(**wrong)
