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
RIGHT, WRONG = Verdict("equal"), Verdict("different")
PROMPT = tuple(WORDS.encode("A shop has 11 apples . gets 2 . sells 5 . ?"))


def _trace(text, verdict=WRONG, q=(), complete=True, continuations=None):
  lines = [
    line + (" ;" if i < text.count(" ; ") else "") for i, line in enumerate(text.split(" ; "))
  ]
  steps = tuple(tuple(WORDS.encode(line)) for line in lines)
  trace = SampledTrace("p", text, steps, verdict, complete)
  return ValuedTrace(trace, q, continuations=continuations or {})


def _changed(valued, **changes):
  return dataclasses.replace(valued, trace=dataclasses.replace(valued.trace, **changes))


GOOD = _trace("11 + 2 = 13 ; 13 - 5 = 8 ; Answer: 8", RIGHT, (0.5, 0.75, 1.0, 1.0))
LEAP = _trace("11 + 2 - 5 = 8 ; Answer: 8", RIGHT, (0.5, 1.0, 1.0))
CONTINUATION = _trace("13 - 5 = 8 ; Answer: 8", RIGHT).trace
BAD_END = _trace("13 - 5 = 7 ; Answer: 7")
BAD = _trace(
  "11 + 2 = 13 ; 13 - 5 = 9 ; Answer: 9",
  WRONG,
  (0.5, 0.75, 0.0, 0.0),
  True,
  {0: (GOOD.trace,), 1: (CONTINUATION, BAD_END.trace)},
)
SAMPLES = Samples("p", PROMPT, (GOOD, BAD))


def _built(samples=SAMPLES, mode="paper", **knobs):
  return pairs.build([samples], PairConfig(mode=mode, **knobs), WORDS)


def _one(samples=SAMPLES, mode="paper", **knobs):
  (pair,) = _built(samples, mode, **knobs).records
  return pair


def _says(steps):
  return [WORDS.decode(step) + (" <eos>" if step[-1] == EOS else "") for step in steps]


@pytest.mark.parametrize(
  ("mode", "prefix", "chosen", "rejected", "complete"),
  [
    (
      "paper",
      "",
      ["11 + 2 = 13 ;", "13 - 5 = 8 ;", "Answer: 8 <eos>"],
      ["11 + 2 = 13 ;", "13 - 5 = 9 ;"],
      (True, False),
    ),
    (
      "branch",
      " 11 + 2 = 13 ;",
      ["13 - 5 = 8 ;", "Answer: 8 <eos>"],
      ["13 - 5 = 9 ;"],
      (True, False),
    ),
    ("step", " 11 + 2 = 13 ;", ["13 - 5 = 8 ;"], ["13 - 5 = 9 ;"], (False, False)),
    (
      "random",
      "",
      ["11 + 2 = 13 ;", "13 - 5 = 8 ;", "Answer: 8 <eos>"],
      ["11 + 2 = 13 ;", "13 - 5 = 9 ;", "Answer: 9 <eos>"],
      (True, True),
    ),
    (
      "distant",
      "",
      ["11 + 2 = 13 ;", "13 - 5 = 8 ;", "Answer: 8 <eos>"],
      ["11 + 2 = 13 ;", "13 - 5 = 9 ;", "Answer: 9 <eos>"],
      (True, True),
    ),
  ],
)
def test_each_mode_has_its_prefix_its_sides_and_its_ends(mode, prefix, chosen, rejected, complete):
  pair = _one(mode=mode)
  assert (pair.problem_id, pair.mode, pair.prefix) == ("p", mode, WORDS.decode(PROMPT) + prefix)
  assert (_says(pair.metadata["chosen_steps"]), _says(pair.metadata["rejected_steps"])) == (
    chosen,
    rejected,
  )
  assert (pair.chosen_complete, pair.rejected_complete) == complete
  assert pair.chosen == " " + " ".join(chosen).removesuffix(
    " <eos>"
  ) and pair.rejected == " " + " ".join(rejected).removesuffix(" <eos>")
  assert pair.metadata["prefix_ids"] == WORDS.encode(pair.prefix)
  # The end-of-text is nowhere but at the end of a complete side.
  for side, ended in (("chosen", complete[0]), ("rejected", complete[1])):
    ids = [i for step in pair.metadata[f"{side}_steps"] for i in step]
    assert [place for place, i in enumerate(ids) if i == EOS] == ([len(ids) - 1] if ended else [])


@pytest.mark.parametrize("mode", typing.get_args(PairMode))
def test_training_reads_the_sampled_tokens_back_from_a_file(mode, tmp_path):
  built = _built(mode=mode, weighted=mode in ("paper", "random"))
  records.write(tmp_path / "pairs.jsonl", built.records)
  (pair,) = records.read(Pair, tmp_path / "pairs.jsonl")
  assert pair == built.records[0]
  tokens = pair_trees.token_pair(pair, WORDS, 0)
  tree = pair_trees.tree_of(tokens)
  assert tree == pair_trees.tree_of(built.pairs[0])
  sides = {node.side: [] for node in trees.nodes(tree)}
  for node in trees.nodes(tree):
    sides[node.side].append(list(node.tokens))
  assert (sides[0], sides[1], sides[-1]) == (
    [pair.metadata["prefix_ids"]],
    pair.metadata["chosen_steps"],
    pair.metadata["rejected_steps"],
  )
  # Step values go with them where those of both sides are known: continuations have none.
  chosen, rejected = (
    [node.advantage for node in trees.nodes(tree) if node.side == side] for side in (1, -1)
  )
  if mode in ("branch", "step"):
    assert not pair_trees.has_advantages(pair)
  else:
    assert chosen == GOOD.advantages() and rejected == BAD.advantages()[: len(rejected)]


def test_a_trace_that_was_cut_off_is_not_ended():
  cut = _changed(BAD, complete=False, verdict=Verdict("undecided", "no-answer"))
  pair = _one(Samples("p", PROMPT, (GOOD, cut)), "random")
  assert (
    pair.chosen_complete
    and not pair.rejected_complete
    and pair.metadata["rejected_steps"][-1][-1] != EOS
  )
  unended = _changed(GOOD, complete=False)
  assert _built(Samples("p", PROMPT, (unended, BAD))).report["dropped"] == {
    "pair: chosen did not end": 1
  }
  bad = dataclasses.replace(
    BAD, continuations={1: (dataclasses.replace(CONTINUATION, complete=False),)}
  )
  assert _built(Samples("p", PROMPT, (bad,)), "branch").report["dropped"] == {
    "pair: chosen did not end": 1
  }
  assert not _one(Samples("p", PROMPT, (bad,)), "step").chosen_complete


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
  built = _built(Samples("p", PROMPT, (LEAP, dataclasses.replace(BAD, q=q))), thresholds=thresholds)
  assert built.report["pits"] == ({str(pit): 1} if pit else {}) and len(built.records) == bool(pit)
  assert built.report["dropped"] == ({} if pit else {"trace: no pit within the thresholds": 1})
  if pit:
    assert (
      built.records[0].metadata["rejected_steps"] == [list(step) for step in BAD.trace.steps[:pit]]
      and built.records[0].metadata["pit"] == pit
    )


def test_everything_that_makes_no_pair_is_counted():
  unvalued = dataclasses.replace(BAD, q=())
  nowhere = dataclasses.replace(BAD, continuations={1: (BAD_END.trace,)})
  undecided = _changed(BAD, verdict=Verdict("undecided", "timeout"))
  traces = (BAD, unvalued, nowhere, undecided, BAD_END, GOOD)
  report = _built(Samples("p", PROMPT, traces), "branch").report
  assert report == {
    "mode": "branch",
    "pairs": 1,
    "problems": {"with pairs": 1},
    "traces": {"right": 1, "undecided": 1, "wrong": 4},
    "pits": {"2": 2},
    "dropped": {"trace: no right continuation": 1, "trace: no step values": 2},
  }
  assert _built(Samples("p", PROMPT, (BAD,))).report["dropped"] == {
    "trace: no right trace of its problem": 1
  }
  assert _built(Samples("p", PROMPT, (GOOD,))).report["problems"] == {"without pairs": 1}


def test_pairs_that_teach_nothing_are_dropped_by_reason():
  def dropped(mode, right, wrong):
    report = _built(Samples("p", PROMPT, (*right, *wrong)), mode, per_trace=9).report
    return report["pairs"], report["dropped"]

  # A right trace that takes the pit as well: the cut wrong trace is its beginning.
  recovered = _trace("11 + 2 = 13 ; 13 - 5 = 9 ; 9 - 1 = 8 ; Answer: 8", RIGHT)
  assert dropped("paper", [recovered], [BAD]) == (0, {"pair: one side begins with the other": 1})
  assert dropped("paper", [recovered, GOOD], [BAD]) == (
    1,
    {"pair: one side begins with the other": 1},
  )
  assert dropped("random", [recovered, GOOD], [BAD]) == (2, {})
  assert dropped("random", [GOOD, GOOD], [BAD, BAD]) == (1, {"pair: the same as another": 3})
  same = dataclasses.replace(
    BAD, continuations={1: (_trace("13 - 5 = 9 ; Answer: 8", RIGHT).trace,)}
  )
  assert dropped("step", [], [same]) == (0, {"pair: chosen and rejected are the same": 1})
  longer = dataclasses.replace(BAD, continuations={1: (_trace("13 - 5 = 9", RIGHT).trace,)})
  assert dropped("step", [], [longer]) == (0, {"pair: one side begins with the other": 1})
  # A trace that stops where the other goes on differs by its end.
  short = _trace("11 + 2 = 13 ;", WRONG)
  assert dropped("random", [GOOD], [short]) == (1, {})
  assert dropped("random", [GOOD], [_changed(short, complete=False)]) == (
    0,
    {"pair: one side begins with the other": 1},
  )
  assert dropped("random", [GOOD], [ValuedTrace(SampledTrace("p", "", (), WRONG))]) == (
    0,
    {"pair: a side has no tokens": 1},
  )


def _many(problems, right=4, wrong=6, seed=0):
  """Problems with traces of random words; the values fall to 0 at a random step."""
  draw = random.Random(seed)
  line = lambda: tuple(draw.randrange(2, 40) for _ in range(draw.randrange(2, 6)))
  sampled = lambda verdict, steps: SampledTrace(
    "", "", tuple(line() for _ in range(steps)), verdict
  )
  found = []
  for number in range(problems):
    traces = [ValuedTrace(sampled(RIGHT, 3), (0.5, 0.6, 0.8, 1.0)) for _ in range(right)]
    for _ in range(wrong):
      pit = draw.randrange(1, 4)
      q = (0.5,) + (0.6,) * (pit - 1) + (0.0,) * (4 - pit)
      after = tuple(sampled(RIGHT, 2) for _ in range(3))
      traces.append(ValuedTrace(sampled(WRONG, 3), q, continuations={pit - 1: after}))
    draw.shuffle(traces)
    found.append(Samples(f"problem {number}", (2, 3, number + 4), tuple(traces)))
  return found


@pytest.mark.parametrize("mode", typing.get_args(PairMode))
def test_caps_hold_and_what_is_beyond_them_is_counted(mode):
  samples = _many(20)
  for per_problem, per_trace, expected in (
    (8, 1, 6),
    (4, 1, 4),
    (8, 2, 8),
    (99, 99, 18 if mode in ("branch", "step") else 24),
  ):
    built = pairs.build(
      samples, PairConfig(mode=mode, per_problem=per_problem, per_trace=per_trace), WORDS
    )
    assert set(collections.Counter(pair.problem_id for pair in built.records).values()) == {
      expected
    }
    assert (
      max(
        collections.Counter(
          (pair.problem_id, pair.metadata["trace"]) for pair in built.records
        ).values()
      )
      <= per_trace
    )
    all_candidates = 20 * (18 if mode in ("branch", "step") else 24)
    assert built.report["pairs"] + sum(built.report["dropped"].values()) == all_candidates
    assert sum(built.report["pits"].values()) == (0 if mode in ("random", "distant") else 120)


@pytest.mark.parametrize("mode", typing.get_args(PairMode))
def test_pairs_of_a_problem_depend_on_the_seed_and_not_on_the_other_problems(mode):
  samples, cfg = _many(12), PairConfig(mode=mode, per_problem=4, seed=3)
  forwards, backwards = pairs.build(samples, cfg, WORDS), pairs.build(samples[::-1], cfg, WORDS)
  by_problem = lambda built: sorted((p.to_json() for p in built.records), key=str)
  assert by_problem(forwards) == by_problem(backwards) and forwards.report == backwards.report
  assert by_problem(forwards) == by_problem(pairs.build(samples, cfg, WORDS))
  alone = pairs.build(samples[5:6], cfg, WORDS)
  assert alone.records == [p for p in forwards.records if p.problem_id == "problem 5"]
  assert by_problem(forwards) != by_problem(
    pairs.build(samples, dataclasses.replace(cfg, seed=4), WORDS)
  )
  # Problems draw apart from each other: the same traces under other names give other pairs.
  drawn = {
    tuple(
      pair.rejected
      for pair in pairs.build([samples[0]._replace(problem_id=str(n))], cfg, WORDS).records
    )
    for n in range(9)
  }
  assert len(drawn) > 1 or mode == "distant"


def _table(one, other):
  """Levenshtein distance by the whole table."""
  table = np.zeros((len(one) + 1, len(other) + 1), int)
  table[:, 0], table[0, :] = range(len(one) + 1), range(len(other) + 1)
  for i, a in enumerate(one, 1):
    for j, b in enumerate(other, 1):
      table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
  return table[-1, -1]


def test_edit_distance_is_that_of_the_whole_table():
  draw = random.Random(1)
  for _ in range(400):
    one, other = (
      [draw.randrange(draw.choice((2, 4, 50))) for _ in range(draw.randrange(0, 90))]
      for _ in range(2)
    )
    if draw.random() < 0.3:
      other = one[: draw.randrange(len(one) + 1)] + other[:3] + one[draw.randrange(len(one) + 1) :]
    assert pairs.edit_distance(one, other) == _table(one, other)


def test_the_most_distant_pair_comes_first():
  flat = lambda steps: [i for step in steps for i in step]
  for samples in _many(10):
    pair = _one(samples, "distant", per_problem=1)
    ended = {
      verdict: [[*flat(t.trace.steps), EOS] for t in samples.traces if t.trace.verdict == verdict]
      for verdict in (RIGHT, WRONG)
    }
    furthest = max(_table(a, b) for a in ended[RIGHT] for b in ended[WRONG])
    assert (
      _table(flat(pair.metadata["chosen_steps"]), flat(pair.metadata["rejected_steps"])) == furthest
    )


def test_weights_are_the_size_of_the_advantages():
  raw = _one(mode="random", weighted=True, normalise=False).metadata
  assert raw["chosen_weights"] == [0.25, 0.25, 0.0] and raw["rejected_weights"] == [0.25, 0.75, 0.0]
  scaled = _one(mode="random", weighted=True).metadata
  assert np.mean(scaled["chosen_weights"] + scaled["rejected_weights"]) == pytest.approx(1.0)
  assert scaled["rejected_weights"] == pytest.approx([1.0, 3.0, 0.0])
  assert _one(mode="paper", weighted=True, normalise=False).metadata["rejected_weights"] == [
    0.25,
    0.75,
  ]
  gap = dataclasses.replace(BAD, q=(0.5, None, 0.0, 0.0))
  assert _built(Samples("p", PROMPT, (GOOD, gap)), "random", weighted=True).report["dropped"] == {
    "pair: no weights": 1
  }
  flat = [dataclasses.replace(trace, q=(0.5,) * 4) for trace in (GOOD, BAD)]
  assert _built(Samples("p", PROMPT, tuple(flat)), "random", weighted=True).report["dropped"] == {
    "pair: no weights": 1
  }


def test_a_tree_holds_every_step_once_with_its_advantage():
  head = dataclasses.replace(BAD.trace, steps=BAD.trace.steps[:2], complete=False)
  cut = ValuedTrace(head, (0.5, 0.75, 0.25))
  tree = pairs.tree(PROMPT, [GOOD, BAD, LEAP, cut, GOOD], EOS)
  paths = {}

  def walk(node, path):
    for child in node.children:
      paths[(*path, child.tokens)] = child.advantage
      walk(child, (*path, child.tokens))

  walk(tree, ())
  end = lambda steps: (*steps[:-1], (*steps[-1], EOS))
  whole = [end(GOOD.trace.steps), end(BAD.trace.steps), end(LEAP.trace.steps), BAD.trace.steps[:2]]
  assert set(paths) == {steps[:n] for steps in whole for n in range(1, len(steps) + 1)}
  assert (
    tree.tokens == PROMPT and not tree.predicted and len(list(trees.nodes(tree))) == 1 + len(paths)
  )
  assert paths[end(GOOD.trace.steps)[:1]] == 0.25 and paths[end(LEAP.trace.steps)[:1]] == 0.5
  assert paths[BAD.trace.steps[:2]] == pytest.approx((-0.75 - 0.5) / 2), "two estimates of one step"
  plan = trees.plan([tree], 64, splittable=True)
  arrays = trees.layout(plan.rows, trees.bounds(plan.rows, 1, 64))
  np.testing.assert_allclose(sorted(arrays["advantage"][0]), sorted(paths.values()), rtol=1e-6)


def test_a_trace_of_more_steps_than_python_has_frames_becomes_a_tree():
  count = 1200
  steps = tuple((2 + i % 30,) for i in range(count))
  tree = pairs.tree(
    PROMPT,
    [
      ValuedTrace(
        SampledTrace("p", "", steps, RIGHT, complete=False),
        tuple(i / count for i in range(count + 1)),
      )
    ],
    EOS,
  )
  assert [node.tokens for node in trees.nodes(tree)] == [PROMPT, *steps]


def test_what_cannot_be_used_is_refused_by_name():
  with pytest.raises(files.DataError, match="a trace of 3 steps has 3 values q; expected 4"):
    dataclasses.replace(BAD, q=(0.5, 0.5, 0.5))
  with pytest.raises(files.DataError, match="trace 1: the value of a prefix is not known"):
    pairs.tree(PROMPT, [GOOD, dataclasses.replace(BAD, q=())], EOS)
  with pytest.raises(
    ValueError, match="mode is 'branches' .*expected one of paper, branch, step, random, distant"
  ):
    PairConfig(mode="branches")
  with pytest.raises(
    ValueError, match="mode is 'step' .*expected paper, random or distant where steps are weighted"
  ):
    PairConfig(mode="step", weighted=True)
  with pytest.raises(ValueError, match="per_problem is 0; expected int, at least 1"):
    PairConfig(per_problem=0)


def test_for_ablations_another_step_of_the_same_traces_may_stand_where_the_pit_is():
  pits = {pit: _built(mode="paper", pit=pit).report["pits"] for pit in typing.get_args(PitChoice)}
  assert pits["first"] == {"2": 1} and pits["last"] == {"3": 1}
  assert _says(_one(mode="paper", pit="last").metadata["rejected_steps"]) == [
    "11 + 2 = 13 ;",
    "13 - 5 = 9 ;",
    "Answer: 9",
  ]
  assert {
    step
    for seed in range(20)
    for step in _built(mode="paper", pit="random", seed=seed).report["pits"]
  } == {"1", "2", "3"}
  assert _built(mode="branch", pit="last").report["dropped"] == {"trace: no right continuation": 1}
  with pytest.raises(ValueError, match="pit is 'deepest' .*expected one of first, random, last"):
    PairConfig(pit="deepest")
