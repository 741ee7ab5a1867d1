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
from synthjax.config.worlds import World
from synthjax.credit import values
from synthjax.credit.schedules import SCHEDULES, Count
from synthjax.credit.traces import PromptedTrace, SampledTrace
from synthjax.data.tokenizers import Words
from synthjax.records import StepValue, Verdict
from synthjax.rollout import journal
from synthjax.rollout.requests import Result, Sample
from synthjax.worlds import shop

schedules = pytest.mark.parametrize("schedule", SCHEDULES)


@dataclasses.dataclass
class Recording:
  """An engine that notes what it was asked, and answers in any order."""

  engine: simulated.Policy
  shuffle: int | None = None
  fingerprint: str = "recording"

  def __post_init__(self):
    self.asked, self.calls = [], 0

  def generate(self, requests):
    requests = list(requests)
    self.calls += 1
    self.asked += requests
    results = list(self.engine.generate(requests))
    if self.shuffle is not None:
      random.Random(self.shuffle).shuffle(results)
    yield from results


VERDICTS = {1: Verdict("equal"), 0: Verdict("different"), None: Verdict("undecided", "timeout")}


def _prompted(problem_id, prompt_ids, steps, reward=0, complete=True):
  trace = SampledTrace(problem_id, "", steps, VERDICTS[reward], complete)
  return PromptedTrace(prompt_ids, trace)


def _trace(name, success, reward=0, complete=True):
  """A trace with these success probabilities after 0, 1, ... steps (its end included where it can be rolled out from)."""
  count = len(success) if complete else len(success) - 1
  trace = _prompted(str(name), (name,), tuple((i,) for i in range(count)), reward, complete)
  return trace, {(name, *range(i)): p for i, p in enumerate(success)}


def _run(cases, cfg, shuffle=None):
  """(values, recording engine) of traces with their success probabilities."""
  engine = Recording(
    simulated.Policy({key: p for _, table in cases for key, p in table.items()}), shuffle
  )
  return values.estimate(
    [trace for trace, _ in cases], engine.generate, simulated.judge, cfg
  ), engine


def _noisy(count, seed, steps=(1, 8)):
  """Traces of all kinds: right, wrong, cut off, with values that go up and down."""
  random = np.random.default_rng(seed)
  return [
    _trace(
      i,
      random.choice([0.0, 0.1, 0.5, 0.9, 1.0], random.integers(steps[0], steps[1] + 1)).tolist(),
      int(random.integers(2)),
      bool(random.integers(4)),
    )
    for i in range(count)
  ]


def _spread(n, best_of, p):
  """Standard deviation of the estimate from n rollouts with success probability p: summed over all outcomes."""
  shares = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
  return math.sqrt(
    sum(
      share * (Count(n, n, c).value(best_of) - 1 + (1 - p) ** best_of) ** 2
      for c, share in enumerate(shares)
    )
  )


@pytest.mark.parametrize("best_of", [1, 5])
@pytest.mark.parametrize("p", [0.05, 0.4, 0.9])
def test_estimates_are_unbiased(best_of, p):
  found, _ = _run(
    [_trace(i, [p, p / 2]) for i in range(1500)], ValueConfig(rollouts=8, best_of=best_of, block=8)
  )
  for step, rate in ((0, p), (1, p / 2)):
    q = np.array([row.q for rows in found.values for row in rows if row.step == step])
    assert abs(q.mean() - (1 - (1 - rate) ** best_of)) < 3.5 * _spread(
      8, best_of, rate
    ) / math.sqrt(len(q))


@pytest.mark.parametrize(("n", "best_of"), [(8, 1), (16, 1), (8, 5), (16, 5), (5, 5)])
def test_the_squared_standard_error_is_the_mean_squared_error_over_all_success_rates(n, best_of):
  rates = (np.arange(2000) + 0.5) / 2000
  squared_error, reported = 0.0, 0.0
  for c in range(n + 1):
    count, share = Count(n, n, c), math.comb(n, c) * rates**c * (1 - rates) ** (n - c)
    squared_error += np.mean(share * (count.value(best_of) - (1 - (1 - rates) ** best_of)) ** 2)
    reported += np.mean(share) * count.standard_error(best_of) ** 2
    assert count.standard_error(best_of) > 0
  assert reported == pytest.approx(squared_error, rel=0.15)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 1), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_advantages_add_up_to_the_reward_less_the_value_of_the_problem(success, reward, best_of):
  found, _ = _run([_trace(0, success, reward)], ValueConfig(rollouts=4, best_of=best_of))
  rows = found.values[0]
  assert sum(row.advantage for row in rows[1:]) == pytest.approx(reward - rows[0].q)
  assert (
    rows[0].advantage is None
    and rows[-1].q == reward
    and rows[-1].standard_error == 0.0
    and rows[-1].n == 0
  )


@schedules
@pytest.mark.parametrize("block", [1, 2, 3, 8])
def test_where_every_rollout_before_the_pit_is_right_and_every_other_one_wrong_all_schedules_find_it(
  schedule, block
):
  cases = []
  for length in range(1, 9):
    for pit in range(1, length + 1):
      cases.append(_trace(len(cases), [float(i < pit) for i in range(length)]))  # wrong
      cases.append(
        _trace(len(cases), [float(i < pit) for i in range(length + 1)], complete=False)
      )  # cut off
    cases.append(_trace(len(cases), [1.0] * length, 1))  # right
    cases.append(_trace(len(cases), [1.0] * length, complete=False))
    cases.append(_trace(len(cases), [0.0] * length))  # lost from the beginning
  reference, _ = _run(cases, ValueConfig())
  found, _ = _run(cases, ValueConfig(schedule=schedule, block=block))
  assert found.pits == reference.pits and {None, *range(1, 9)} == set(found.pits)
  assert found.spent.rollouts <= reference.spent.rollouts


@pytest.mark.parametrize("best_of", [1, 3])
def test_stopping_at_the_first_fail_loses_no_pit_whatever_the_values(best_of):
  cases = _noisy(400, 0)
  reference, found = (
    _run(cases, ValueConfig(schedule=schedule, best_of=best_of))
    for schedule in ("full", "first_fail")
  )
  assert found[0].pits == reference[0].pits and len(set(found[0].pits)) > 4
  assert found[0].spent.rollouts < reference[0].spent.rollouts


@pytest.mark.parametrize("world", ["clean", "noisy"])
def test_the_sequential_search_needs_two_and_a_half_times_fewer_rollouts_at_95_percent_of_the_same_pits(
  world,
):
  found = simulated.simulate(world, 250, 5)
  compared = values.compare(
    found.traces, simulated.Policy(found.success).generate, simulated.judge, ValueConfig()
  )
  assert compared["full"].agreement == compared["first_fail"].agreement == 1.0
  assert compared["sequential"].times_fewer > 2.5 and compared["sequential"].agreement > 0.95
  assert compared["binary"].times_fewer > 1.8 and compared["binary"].agreement > 0.88


def test_bisection_values_a_logarithm_of_the_prefixes():
  for length in (8, 16, 32):
    for pit in range(1, length + 1):
      found, engine = _run(
        [_trace(0, [float(i < pit) for i in range(length)])],
        ValueConfig(schedule="binary", block=8),
      )
      assert found.pits == [pit] and len(engine.asked) <= math.log2(length) + 1


@schedules
def test_what_is_reported_is_what_was_asked(schedule):
  found, engine = _run(_noisy(60, 1), ValueConfig(rollouts=7, block=3, schedule=schedule))
  rollouts = sum(request.n for request in engine.asked)
  assert dataclasses.astuple(found.spent) == (
    engine.calls,
    len(engine.asked),
    rollouts,
    rollouts,
    0,
    0,
    0,
    "",
  )
  assert rollouts == sum(row.n for rows in found.values for row in rows)
  assert len({request.id for request in engine.asked}) == len(engine.asked)


def test_the_full_schedule_takes_one_call_and_all_rollouts_of_every_prefix():
  cases = _noisy(40, 2)
  found, engine = _run(cases, ValueConfig(rollouts=7, block=3))
  assert engine.calls == 1 and found.spent.rollouts == 7 * sum(len(table) for _, table in cases)
  assert [[row.n for row in rows] for rows in found.values] == [
    [7] * len(table) + [0] * prompted.trace.complete for prompted, table in cases
  ]


@schedules
def test_prefixes_that_traces_of_a_problem_share_are_valued_once(schedule):
  one = _prompted("p", (9,), ((1,), (2, 3), (4,)))
  other = _prompted("p", (9,), ((1,), (2,), (3,), (5,)))  # the same tokens in other steps
  table = {(9,): 1.0, (9, 1): 0.9, (9, 1, 2): 0.5, (9, 1, 2, 3): 0.2}
  cfg = ValueConfig(schedule=schedule, block=8)
  found, engine = _run([(one, table), (other, table), (one, table)], cfg)
  assert (
    collections.Counter(request.prompt_ids for request in engine.asked).most_common(1)[0][1] == 1
  )
  assert found.values[0] == [dataclasses.replace(row, trace=0) for row in found.values[2]]
  alone, _ = _run([(other, table)], cfg)
  assert found.values[1] == [dataclasses.replace(row, trace=1) for row in alone.values[0]]


def test_the_same_tokens_of_another_problem_are_other_rollouts():
  (one, table), other = (
    _trace(0, [0.5] * 6),
    _prompted("other", (0,), tuple((i,) for i in range(6))),
  )
  found, engine = _run([(one, table), (other, table)], ValueConfig(rollouts=16))
  assert len({request.seed for request in engine.asked}) == len(engine.asked) == 2 * 6 * 8
  assert [row.c for row in found.values[0]] != [row.c for row in found.values[1]]


@schedules
def test_values_depend_neither_on_the_order_nor_on_the_other_traces(schedule):
  cases = [
    *_noisy(50, 3),
    *(
      (
        _prompted(str(i), (i,), (*prompted.trace.steps[:1], (77,)), reward=1),
        {(i, 0): 0.5, **table},
      )
      for i, (prompted, table) in enumerate(_noisy(20, 3))
    ),
  ]
  whole, _ = _run(cases, ValueConfig(schedule=schedule), shuffle=1)
  backwards, _ = _run(cases[::-1], ValueConfig(schedule=schedule), shuffle=2)
  unnumbered = lambda rows: [dataclasses.replace(row, trace=0) for row in rows]
  assert (
    list(map(unnumbered, whole.values)) == list(map(unnumbered, backwards.values[::-1]))
    and whole.correct == backwards.correct[::-1]
  )
  table = {key: p for _, of_case in cases for key, p in of_case.items()}
  for number in (0, 7, 60):
    alone, _ = _run([(cases[number][0], table)], ValueConfig(schedule=schedule))
    assert (
      unnumbered(alone.values[0]) == unnumbered(whole.values[number])
      and alone.pits[0] == whole.pits[number]
    )
  assert _run(cases, ValueConfig(schedule=schedule, seed=1))[0].values != whole.values


def test_a_rollout_is_the_same_under_every_schedule():
  cases = _noisy(40, 4)
  full, first = (
    _run(cases, ValueConfig(schedule=schedule))[0].values for schedule in ("full", "first_fail")
  )
  rows = {(row.trace, row.step): row for of_trace in full for row in of_trace}
  for row in itertools.chain(*first):
    reference = rows[row.trace, row.step]
    assert row.n == 0 or (row.n, row.c, row.q) == (reference.n, reference.c, reference.q)


def test_undecided_verdicts_are_left_out_and_counted_and_a_rollout_without_an_answer_has_failed():
  verdicts = {
    0: Verdict("equal"),
    1: Verdict("different"),
    2: Verdict("undecided", "timeout"),
    3: Verdict("undecided", "no-answer"),
  }

  def generate(requests):
    for request in requests:
      yield Result(
        request.id, tuple(Sample("", ((request.seed + j) % 4,)) for j in range(request.n))
      )

  found = values.estimate(
    [_prompted("p", (1,), ((2,),))],
    generate,
    lambda name, given, sample: verdicts[sample.ids[0]],
    ValueConfig(rollouts=8, block=4),
  )
  row = found.values[0][0]
  assert (
    (row.n, row.c, row.undecided, row.q) == (6, 2, 2, pytest.approx(2 / 6))
    and found.spent.undecided == 2
    and found.spent.unanswered == 2
  )
  assert found.values[0][1].advantage == -row.q


@schedules
def test_a_prefix_with_too_few_decided_rollouts_has_no_value(schedule):
  trace, table = _trace(0, [1.0, 1.0, 0.0, 0.0])
  judge = lambda name, given, sample: (
    Verdict("undecided", "memory") if len(given) == 1 else simulated.judge(name, given, sample)
  )
  found = values.estimate(
    [trace], simulated.Policy(table).generate, judge, ValueConfig(schedule=schedule, best_of=2)
  )
  rows = {row.step: row for row in found.values[0]}
  assert (
    rows[1].q is rows[1].standard_error is rows[1].advantage is None
    and rows[1].undecided > 0 == rows[1].n
  )
  assert rows[2].q == 0.0 and rows[2].advantage is None
  assert found.pits == [None]  # how far the value fell is not known
  assert all(StepValue.from_json(row.to_json()) == row for row in rows.values())


@pytest.mark.parametrize("reward", [0, 1, None])
def test_a_trace_that_has_ended_is_not_rolled_out_from(reward):
  trace, table = _trace(0, [1.0, 0.5], reward)
  found, engine = _run([(trace, table)], ValueConfig())
  assert {request.prompt_ids for request in engine.asked} == set(table)
  assert found.values[0][-1].q == reward and len(found.values[0]) == 3


def test_traces_without_steps_have_the_value_of_their_problem():
  found, _ = _run([(_prompted("p", (1,), (), complete=False), {(1,): 1.0})], ValueConfig())
  assert [(row.step, row.q) for row in found.values[0]] == [(0, 1.0)] and found.pits == [None]


def test_the_first_right_rollouts_of_each_prefix_come_back():
  found, _ = _run([_trace(0, [0.5, 0.0, 0.9])], ValueConfig(keep=2))
  assert {
    step: [sample.ids for sample in samples] for step, samples in found.correct[0].items()
  } == {
    0: [(1,)] * 2,
    2: [(1,)] * 2,
  }
  assert _run([_trace(0, [0.5, 0.0])], ValueConfig(keep=0))[0].correct[0] == {0: ()}


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

  found = values.estimate(
    [_prompted("p", (1,), ((2,), (3,)), reward=1)],
    generate,
    judge,
    ValueConfig(rollouts=1, block=1),
  )
  assert [row.q for row in found.values[0]] == [1.0, 1.0, 1.0]


def test_an_error_of_the_judge_ends_the_job():
  def judge(name, given, sample):
    raise OSError("the worker is gone")

  trace, table = _trace(0, [0.5] * 5)
  with pytest.raises(OSError, match="the worker is gone"):
    values.estimate([trace], simulated.Policy(table).generate, judge, ValueConfig())


def test_refused_requests_are_counted_and_the_others_go_on():
  trace, table = _trace(0, [1.0, 1.0, 0.0])

  def generate(requests):
    for request in requests:
      if len(request.prompt_ids) == 2:
        yield Result(request.id, error="prompt is 2 tokens; expected at most 1")
      else:
        yield from simulated.Policy(table).generate([request])

  found = values.estimate([trace], generate, simulated.judge, ValueConfig(block=8))
  assert [row.q for row in found.values[0]] == [1.0, None, 0.0, 0.0] and found.spent.refused == 1
  assert (
    found.spent.error == "prompt is 2 tokens; expected at most 1" and found.spent.rollouts == 16
  )


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
  trace, table = _trace(0, [0.5])
  with pytest.raises(files.DataError, match=message):
    values.estimate(
      [trace],
      lambda requests: iter(spoil(list(simulated.Policy(table).generate(requests)))),
      simulated.judge,
      ValueConfig(),
    )


@schedules
def test_a_killed_job_goes_on_from_its_journal_with_the_same_values_and_samples_nothing_twice(
  schedule, tmp_path
):
  cases, cfg = _noisy(25, 6), ValueConfig(schedule=schedule)
  traces, table = (
    [trace for trace, _ in cases],
    {key: p for _, of_case in cases for key, p in of_case.items()},
  )
  whole, engine = _run(cases, cfg)
  done = collections.Counter()

  class Dying(simulated.Policy):
    def generate(self, requests):
      for number, result in enumerate(super().generate(requests)):
        if number == 9:
          raise KeyboardInterrupt
        done[result.id] += 1
        yield result

  for attempt in range(100):  # noqa: B007 - a job that never ends fails below
    try:
      found = values.estimate(
        traces,
        lambda requests: journal.generate(Dying(table), requests, tmp_path / "j.jsonl"),
        simulated.judge,
        cfg,
      )
      break
    except KeyboardInterrupt:
      continue
  assert attempt > 2 and found == whole
  assert set(done.values()) == {1} and set(done) == {request.id for request in engine.asked}


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


# A policy of the shop whose lines go on from the line before with a result that may be off by one: two errors may cancel.
def _lines(question, text):
  """{next line: probability} after a text, {} at its end."""
  total, events, _ = shop.parse(question)
  lines = [line.split() for line in text.split(" ;") if line.strip()]
  if lines and lines[-1][0] == "Answer:":
    return {}
  total = int(lines[-1][-1]) if lines else total
  if len(lines) == len(events):
    return {f"Answer: {total}": 1.0}
  event = events[len(lines)]
  results = [
    r for r in (total + event.sign * event.amount + d for d in (-1, 0, 1)) if 0 <= r <= 20
  ] or [0]
  weights = np.random.default_rng([*text.encode(), len(lines)]).dirichlet(np.ones(len(results)))
  return {
    f"{total} {'+' if event.sign > 0 else '-'} {event.amount} = {r} ;": p
    for r, p in zip(results, weights.tolist())
  }


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


@pytest.mark.parametrize("best_of", [1, 5])
def test_in_the_shop_estimates_are_those_of_all_continuations_summed_up(best_of):
  world = World(max_events=3)
  words, problems = (
    Words(shop.vocabulary(world)),
    {p.id: p for p in shop.problems(world, "train", 60)},
  )

  def generate(requests):
    for request in requests:
      question, mark, text = words.decode(request.prompt_ids).partition("?")
      drawn = [
        " ".join(_draw(question + mark, text.strip(), np.random.default_rng([request.seed, j])))
        for j in range(request.n)
      ]
      yield Result(request.id, tuple(Sample(text, tuple(words.encode(text))) for text in drawn))

  def judge(name, given, sample):
    return Verdict(
      "equal"
      if words.decode((*given, *sample.ids)).endswith(f"Answer: {problems[name].answer}")
      else "different"
    )

  traces = []
  for number, problem in enumerate(problems.values()):
    lines = _draw(problem.question, "", np.random.default_rng(number))
    traces.append(
      _prompted(
        problem.id,
        tuple(words.encode(problem.question)),
        tuple(tuple(words.encode(line)) for line in lines),
        reward=int(lines[-1] == f"Answer: {problem.answer}"),
      )
    )
  rows = values.estimate(traces, generate, judge, ValueConfig(rollouts=24, best_of=best_of)).values
  error = squared = expected = 0.0
  for prompted, of_trace in zip(traces, rows):
    for row in of_trace[:-1]:
      p = _success(
        problems[row.problem_id],
        words.decode(itertools.chain(*prompted.trace.steps[: row.step])),
      )
      off = row.q - 1 + (1 - p) ** best_of
      error, squared, expected = (
        error + off,
        squared + off**2,
        expected + _spread(24, best_of, p) ** 2,
      )
  assert {prompted.trace.reward for prompted in traces} == {0, 1} and expected > 0
  # Prefixes of different problems are independent; those of one problem are different rollouts.
  assert abs(error) < 3.5 * math.sqrt(expected) and squared == pytest.approx(expected, rel=0.6)
