"""Preference pairs and trees of traces of the shop."""

import collections
import dataclasses
import random
import typing

import numpy as np
import pytest

from synthjax import files, records
from synthjax.config.credit import PairConfig, PairMode, PitChoice, PitThresholds
from synthjax.config.worlds import World
from synthjax.credit import pairs
from synthjax.credit.pairs import Samples, ValuedTrace
from synthjax.credit.traces import SampledTrace
from synthjax.data import pair_trees, tokenizers, trees
from synthjax.records import Pair, Verdict
from synthjax.worlds import shop

WORDS = tokenizers.Words(shop.vocabulary(World()))
EOS = WORDS.eos_id
CORRECT, INCORRECT = Verdict("equal"), Verdict("different")
PROMPT = tuple(WORDS.encode("A shop has 11 apples . gets 2 . sells 5 . ?"))
MODES = typing.get_args(PairMode)
WHOLE_MODES = ("random", "distant")
PIT_MODES = ("branch", "step")


def _sampled(text, verdict=INCORRECT):
  """A trace whose steps are its lines."""
  *lines, last = text.split(" ; ")
  steps = [tuple(WORDS.encode(f"{line} ;")) for line in lines]
  return SampledTrace("p", text, (*steps, tuple(WORDS.encode(last))), verdict)


def _changed(valued, **changes):
  return dataclasses.replace(valued, trace=dataclasses.replace(valued.trace, **changes))


GOOD = ValuedTrace(
  _sampled("11 + 2 = 13 ; 13 - 5 = 8 ; Answer: 8", CORRECT), q=(0.5, 0.75, 1.0, 1.0)
)
LEAP = ValuedTrace(_sampled("11 + 2 - 5 = 8 ; Answer: 8", CORRECT), q=(0.5, 1.0, 1.0))
CONTINUATION = _sampled("13 - 5 = 8 ; Answer: 8", CORRECT)
BAD_END = _sampled("13 - 5 = 7 ; Answer: 7")
BAD = ValuedTrace(
  _sampled("11 + 2 = 13 ; 13 - 5 = 9 ; Answer: 9"),
  q=(0.5, 0.75, 0.0, 0.0),
  continuations={0: (GOOD.trace,), 1: (CONTINUATION, BAD_END)},
)


def _build(*traces, mode="paper", **knobs):
  samples = Samples("p", PROMPT, traces or (GOOD, BAD))
  return pairs.build([samples], PairConfig(mode=mode, **knobs), WORDS)


def _one(*traces, mode="paper", **knobs):
  """The only pair, and its record."""
  built = _build(*traces, mode=mode, **knobs)
  (pair,), (record,) = built.pairs, built.records
  return pair, record


def _dropped(*traces, mode="paper", **knobs):
  return _build(*traces, mode=mode, **knobs).report["dropped"]


def _lines(side):
  """The steps of a side as text."""
  lines = []
  for step in side.steps:
    end = " <eos>" if step[-1] == EOS else ""
    lines.append(WORDS.decode(step) + end)
  return lines


FIRST = "11 + 2 = 13 ;"
RIGHT_TRACE = [FIRST, "13 - 5 = 8 ;", "Answer: 8 <eos>"]
WRONG_TRACE = [FIRST, "13 - 5 = 9 ;", "Answer: 9 <eos>"]


@pytest.mark.parametrize(
  ("mode", "prefix", "chosen", "rejected", "complete"),
  [
    ("paper", "", RIGHT_TRACE, WRONG_TRACE[:2], (True, False)),
    ("branch", f" {FIRST}", RIGHT_TRACE[1:], WRONG_TRACE[1:2], (True, False)),
    ("step", f" {FIRST}", RIGHT_TRACE[1:2], WRONG_TRACE[1:2], (False, False)),
    ("random", "", RIGHT_TRACE, WRONG_TRACE, (True, True)),
    ("distant", "", RIGHT_TRACE, WRONG_TRACE, (True, True)),
  ],
)
def test_each_mode_has_its_prefix_its_sides_and_its_ends(mode, prefix, chosen, rejected, complete):
  pair, record = _one(mode=mode)
  assert (record.problem_id, record.mode) == ("p", mode)
  assert record.prefix == WORDS.decode(PROMPT) + prefix
  assert list(pair.prefix_ids) == WORDS.encode(record.prefix)
  assert (_lines(pair.chosen), _lines(pair.rejected)) == (chosen, rejected)
  assert record.chosen == " " + " ".join(chosen).removesuffix(" <eos>")
  assert record.rejected == " " + " ".join(rejected).removesuffix(" <eos>")
  assert (record.chosen_complete, record.rejected_complete) == complete
  # End-of-text is nowhere but at the end of a complete side.
  for side, ended in zip((pair.chosen, pair.rejected), complete):
    assert side.complete == ended
    ids = side.ids()
    assert [place for place, i in enumerate(ids) if i == EOS] == [len(ids) - 1] * ended


@pytest.mark.parametrize("mode", MODES)
def test_training_reads_the_sampled_tokens_back_from_a_file(mode, tmp_path):
  built = _build(mode=mode, weighted=mode in ("paper", "random"))
  records.write(tmp_path / "pairs.jsonl", built.records)
  (record,) = records.read(Pair, tmp_path / "pairs.jsonl")
  assert record == built.records[0]
  (pair,) = built.pairs
  tree = pair_trees.tree_of(pair_trees.token_pair(record, WORDS, 0))
  assert tree == pair_trees.tree_of(pair)
  tokens = collections.defaultdict(list)
  advantages = collections.defaultdict(list)
  for node in trees.nodes(tree):
    tokens[node.side].append(node.tokens)
    advantages[node.side].append(node.advantage)
  assert tokens[0] == [pair.prefix_ids]
  assert tuple(tokens[1]) == pair.chosen.steps
  assert tuple(tokens[-1]) == pair.rejected.steps
  # Step values go with them where those of both sides are known: continuations have none.
  if mode in PIT_MODES:
    assert not pair_trees.has_advantages(record)
  else:
    assert advantages[1] == GOOD.advantages()
    assert advantages[-1] == BAD.advantages()[: len(advantages[-1])]


def test_the_metadata_of_a_pair_keeps_its_keys():
  _, record = _one(mode="paper", weighted=True)
  assert list(record.metadata) == [
    "prefix_ids",
    "chosen_steps",
    "rejected_steps",
    "trace",
    "pit",
    "chosen_advantages",
    "rejected_advantages",
    "chosen_weights",
    "rejected_weights",
  ]
  assert (record.metadata["trace"], record.metadata["pit"]) == (1, 2)


def test_a_trace_that_was_cut_off_is_not_ended():
  cut = _changed(BAD, complete=False, verdict=Verdict("undecided", "no-answer"))
  pair, record = _one(GOOD, cut, mode="random")
  assert record.chosen_complete
  assert not record.rejected_complete
  assert pair.rejected.steps[-1][-1] != EOS
  did_not_end = {"pair: chosen did not end": 1}
  assert _dropped(_changed(GOOD, complete=False), BAD) == did_not_end
  continuation = dataclasses.replace(CONTINUATION, complete=False)
  bad = dataclasses.replace(BAD, continuations={1: (continuation,)})
  assert _dropped(bad, mode="branch") == did_not_end
  _, record = _one(bad, mode="step")
  assert not record.chosen_complete


@pytest.mark.parametrize(
  ("q", "thresholds", "pit"),
  [
    ((0.5, 0.75, 0.0, 0.0), PitThresholds(), 2),
    ((0.5, 0.2, 0.1, 0.1), PitThresholds(), 1),
    ((0.2, 0.1, 0.1, 0.1), PitThresholds(), None),
    ((0.9, 0.8, 0.45, 0.5), PitThresholds(), None),
    ((0.9, 0.8, 0.4, 0.5), PitThresholds(), 2),
    ((0.2, 0.0, 0.0, 0.0), PitThresholds(), None),
    ((0.2, 0.0, 0.0, 0.0), PitThresholds(min_before=0.1), 1),
    ((0.9, 0.8, 0.6, 0.7), PitThresholds(min_drop=0.2), 2),
  ],
)
def test_only_a_fall_within_the_thresholds_is_a_pit(q, thresholds, pit):
  built = _build(LEAP, dataclasses.replace(BAD, q=q), thresholds=thresholds)
  if pit is None:
    assert built.pairs == []
    assert built.report["pits"] == {}
    assert built.report["dropped"] == {"trace: no pit within the thresholds": 1}
    return
  (pair,) = built.pairs
  assert pair.rejected.steps == BAD.trace.steps[:pit]
  assert pair.pit == pit
  assert built.report["pits"] == {str(pit): 1}
  assert built.report["dropped"] == {}


def test_everything_that_makes_no_pair_is_counted():
  unvalued = dataclasses.replace(BAD, q=())
  nowhere = dataclasses.replace(BAD, continuations={1: (BAD_END,)})
  undecided = _changed(BAD, verdict=Verdict("undecided", "timeout"))
  bad_end = ValuedTrace(BAD_END)
  report = _build(BAD, unvalued, nowhere, undecided, bad_end, GOOD, mode="branch").report
  assert report == {
    "mode": "branch",
    "pairs": 1,
    "problems": {"with pairs": 1},
    "traces": {"right": 1, "undecided": 1, "wrong": 4},
    "pits": {"2": 2},
    "dropped": {"trace: no right continuation": 1, "trace: no step values": 2},
  }
  assert _dropped(BAD) == {"trace: no right trace of its problem": 1}
  assert _build(GOOD).report["problems"] == {"without pairs": 1}


BEGINS_WITH = {"pair: one side begins with the other": 1}


def test_pairs_that_teach_nothing_are_dropped_by_reason():
  def made(mode, *traces):
    report = _build(*traces, mode=mode, per_trace=9).report
    return report["pairs"], report["dropped"]

  def with_continuation(text):
    return dataclasses.replace(BAD, continuations={1: (_sampled(text, CORRECT),)})

  # A correct trace that takes the pit as well: the cut incorrect trace is its beginning.
  recovered = ValuedTrace(_sampled("11 + 2 = 13 ; 13 - 5 = 9 ; 9 - 1 = 8 ; Answer: 8", CORRECT))
  assert made("paper", recovered, BAD) == (0, BEGINS_WITH)
  assert made("paper", recovered, GOOD, BAD) == (1, BEGINS_WITH)
  assert made("random", recovered, GOOD, BAD) == (2, {})
  assert made("random", GOOD, GOOD, BAD, BAD) == (1, {"pair: the same as another": 3})
  same = with_continuation("13 - 5 = 9 ; Answer: 8")
  assert made("step", same) == (0, {"pair: chosen and rejected are the same": 1})
  assert made("step", with_continuation("13 - 5 = 9")) == (0, BEGINS_WITH)
  # A trace that stops where the other goes on differs by its end.
  short = ValuedTrace(_sampled("11 + 2 = 13 ;"))
  assert made("random", GOOD, short) == (1, {})
  assert made("random", GOOD, _changed(short, complete=False)) == (0, BEGINS_WITH)
  empty = ValuedTrace(SampledTrace("p", "", (), INCORRECT))
  assert made("random", GOOD, empty) == (0, {"pair: a side has no tokens": 1})


def _many(problems, correct=4, incorrect=6, seed=0):
  """Problems with traces of random words; the values fall to 0 at a random step."""
  rng = random.Random(seed)

  def sampled(verdict, steps):
    lines = []
    for _ in range(steps):
      lines.append(tuple(rng.randrange(2, 40) for _ in range(rng.randrange(2, 6))))
    return SampledTrace("", "", tuple(lines), verdict)

  found = []
  for number in range(problems):
    traces = []
    for _ in range(correct):
      traces.append(ValuedTrace(sampled(CORRECT, 3), q=(0.5, 0.6, 0.8, 1.0)))
    for _ in range(incorrect):
      pit = rng.randrange(1, 4)
      q = (0.5,) + (0.6,) * (pit - 1) + (0.0,) * (4 - pit)
      after = tuple(sampled(CORRECT, 2) for _ in range(3))
      traces.append(ValuedTrace(sampled(INCORRECT, 3), q, continuations={pit - 1: after}))
    rng.shuffle(traces)
    found.append(Samples(f"problem {number}", (2, 3, number + 4), tuple(traces)))
  return found


@pytest.mark.parametrize("mode", MODES)
def test_caps_hold_and_what_is_beyond_them_is_counted(mode):
  samples = _many(20)
  candidates = 18 if mode in PIT_MODES else 24  # of a problem
  for per_problem, per_trace, expected in (
    (8, 1, 6),
    (4, 1, 4),
    (8, 2, 8),
    (99, 99, candidates),
  ):
    cfg = PairConfig(mode=mode, per_problem=per_problem, per_trace=per_trace)
    built = pairs.build(samples, cfg, WORDS)
    of_problem = collections.Counter(pair.problem_id for pair in built.pairs)
    of_trace = collections.Counter((pair.problem_id, pair.trace) for pair in built.pairs)
    assert set(of_problem.values()) == {expected}
    assert max(of_trace.values()) <= per_trace
    report = built.report
    assert report["pairs"] + sum(report["dropped"].values()) == 20 * candidates
    assert sum(report["pits"].values()) == (0 if mode in WHOLE_MODES else 120)


@pytest.mark.parametrize("mode", MODES)
def test_pairs_of_a_problem_depend_on_the_seed_and_not_on_the_other_problems(mode):
  samples = _many(12)
  cfg = PairConfig(mode=mode, per_problem=4, seed=3)
  in_order = lambda built: sorted((record.to_json() for record in built.records), key=str)
  forwards = pairs.build(samples, cfg, WORDS)
  backwards = pairs.build(samples[::-1], cfg, WORDS)
  assert in_order(forwards) == in_order(backwards)
  assert forwards.report == backwards.report
  assert forwards == pairs.build(samples, cfg, WORDS)
  alone = pairs.build(samples[5:6], cfg, WORDS)
  assert alone.pairs == [pair for pair in forwards.pairs if pair.problem_id == "problem 5"]
  another_seed = pairs.build(samples, dataclasses.replace(cfg, seed=4), WORDS)
  assert in_order(forwards) != in_order(another_seed)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "distant"])
def test_the_same_traces_under_other_names_give_other_pairs(mode):
  (samples,) = _many(1)
  cfg = PairConfig(mode=mode, per_problem=4, seed=3)
  drawn = set()
  for number in range(9):
    built = pairs.build([samples._replace(problem_id=str(number))], cfg, WORDS)
    drawn.add(tuple(record.rejected for record in built.records))
  assert len(drawn) > 1


def _table_distance(one, other):
  """Levenshtein distance by the whole table."""
  table = np.zeros((len(one) + 1, len(other) + 1), int)
  table[:, 0] = range(len(one) + 1)
  table[0, :] = range(len(other) + 1)
  for i, a in enumerate(one, 1):
    for j, b in enumerate(other, 1):
      table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
  return table[-1, -1]


def test_edit_distance_is_that_of_the_whole_table():
  rng = random.Random(1)

  def sequence():
    return [rng.randrange(rng.choice((2, 4, 50))) for _ in range(rng.randrange(0, 90))]

  for _ in range(400):
    one, other = sequence(), sequence()
    if rng.random() < 0.3:
      other = one[: rng.randrange(len(one) + 1)] + other[:3] + one[rng.randrange(len(one) + 1) :]
    assert pairs.edit_distance(one, other) == _table_distance(one, other)


def test_the_most_distant_pair_comes_first():
  def ended(samples, reward):
    of_reward = [valued.trace for valued in samples.traces if valued.trace.reward == reward]
    return [[*sum(trace.steps, ()), EOS] for trace in of_reward]

  for samples in _many(10):
    (pair,) = pairs.build([samples], PairConfig(mode="distant", per_problem=1), WORDS).pairs
    distances = []
    for correct in ended(samples, 1):
      for incorrect in ended(samples, 0):
        distances.append(_table_distance(correct, incorrect))
    assert _table_distance(pair.chosen.ids(), pair.rejected.ids()) == max(distances)


def test_weights_are_the_size_of_the_advantages():
  pair, _ = _one(mode="random", weighted=True, normalise=False)
  assert pair.chosen.weights == [0.25, 0.25, 0.0]
  assert pair.rejected.weights == [0.25, 0.75, 0.0]
  pair, _ = _one(mode="paper", weighted=True, normalise=False)
  assert pair.rejected.weights == [0.25, 0.75]


def test_normalised_weights_have_a_mean_of_one():
  pair, _ = _one(mode="random", weighted=True)
  assert np.mean([*pair.chosen.weights, *pair.rejected.weights]) == pytest.approx(1.0)
  assert pair.rejected.weights == pytest.approx([1.0, 3.0, 0.0])


def test_pairs_without_weights_are_dropped_where_steps_are_weighted():
  no_weights = {"pair: no weights": 1}
  gap = dataclasses.replace(BAD, q=(0.5, None, 0.0, 0.0))
  assert _dropped(GOOD, gap, mode="random", weighted=True) == no_weights
  flat = [dataclasses.replace(trace, q=(0.5,) * 4) for trace in (GOOD, BAD)]
  assert _dropped(*flat, mode="random", weighted=True) == no_weights


def test_a_tree_holds_every_step_once_with_its_advantage():
  head = dataclasses.replace(BAD.trace, steps=BAD.trace.steps[:2], complete=False)
  cut = ValuedTrace(head, q=(0.5, 0.75, 0.25))
  tree = pairs.tree(PROMPT, [GOOD, BAD, LEAP, cut, GOOD], EOS)
  paths = {}

  def walk(node, path):
    for child in node.children:
      paths[(*path, child.tokens)] = child.advantage
      walk(child, (*path, child.tokens))

  def with_end(valued):
    *first, last = valued.trace.steps
    return (*first, (*last, EOS))

  walk(tree, ())
  expected = set()
  for steps in (with_end(GOOD), with_end(BAD), with_end(LEAP), head.steps):
    expected |= {steps[:n] for n in range(1, len(steps) + 1)}
  assert set(paths) == expected
  assert tree.tokens == PROMPT
  assert not tree.predicted
  assert len(list(trees.nodes(tree))) == 1 + len(paths)
  assert paths[with_end(GOOD)[:1]] == 0.25
  assert paths[with_end(LEAP)[:1]] == 0.5
  assert paths[head.steps] == pytest.approx((-0.75 - 0.5) / 2), "two estimates of one step"
  plan = trees.plan([tree], 64, splittable=True)
  arrays = trees.layout(plan.rows, trees.bounds(plan.rows, 1, 64))
  np.testing.assert_allclose(sorted(arrays["advantage"][0]), sorted(paths.values()), rtol=1e-6)


def test_a_trace_of_more_steps_than_python_has_frames_becomes_a_tree():
  count = 1200
  steps = tuple((2 + i % 30,) for i in range(count))
  trace = SampledTrace("p", "", steps, CORRECT, complete=False)
  valued = ValuedTrace(trace, q=tuple(i / count for i in range(count + 1)))
  tree = pairs.tree(PROMPT, [valued], EOS)
  assert [node.tokens for node in trees.nodes(tree)] == [PROMPT, *steps]


def test_values_that_do_not_fit_the_trace_are_refused():
  with pytest.raises(files.DataError, match="a trace of 3 steps has 3 values q; expected 4"):
    dataclasses.replace(BAD, q=(0.5, 0.5, 0.5))
  with pytest.raises(files.DataError, match="a trace of 4 values q has 1 counts of rollouts"):
    dataclasses.replace(BAD, counts=(None,))
  with pytest.raises(files.DataError, match="trace 1: the value of a prefix is not known"):
    pairs.tree(PROMPT, [GOOD, dataclasses.replace(BAD, q=())], EOS)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (
      {"mode": "branches"},
      "mode is 'branches' .*expected one of paper, branch, step, random, distant",
    ),
    (
      {"mode": "step", "weighted": True},
      "mode is 'step' .*expected paper, random or distant where steps are weighted",
    ),
    ({"per_problem": 0}, "per_problem is 0; expected int, at least 1"),
    ({"pit": "deepest"}, "pit is 'deepest' .*expected one of first, random, last"),
  ],
)
def test_settings_out_of_range_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    PairConfig(**settings)


def test_for_ablations_another_step_of_the_same_traces_may_stand_where_the_pit_is():
  pits = {pit: _build(pit=pit).report["pits"] for pit in typing.get_args(PitChoice)}
  assert pits["first"] == {"2": 1}
  assert pits["last"] == {"3": 1}
  pair, _ = _one(pit="last")
  assert _lines(pair.rejected) == [*WRONG_TRACE[:2], "Answer: 9"]
  drawn = set()
  for seed in range(20):
    drawn |= set(_build(pit="random", seed=seed).report["pits"])
  assert drawn == {"1", "2", "3"}
  assert _dropped(mode="branch", pit="last") == {"trace: no right continuation": 1}
