"""Preference pairs and trees from sampled traces with their step values: what the policies of study A are trained on.

Modes of pairs (design, "Study A in formulas"); a pit is the first step whose fall in value passes the thresholds:
- `paper`: prefix = problem; chosen = a right trace, to its end; rejected = the wrong trace cut at the end of its pit, without end-of-text.
- `branch`: prefix = problem and steps before the pit; chosen = a right continuation sampled from there, to its end; rejected = the pit.
- `step`: as `branch`, chosen cut to its first step; no end-of-text on either side.
- `random`, `distant`: plain DPO, a whole right trace against a whole wrong one, drawn at random or the most distant by edit distance; a
  trace that did not end is given no end.

Everything is made of the tokens that were sampled; texts are those the tokens decode to.
"""

import collections
import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from synthjax import files
from synthjax.config.credit import PairConfig
from synthjax.credit.pits import Evidence, first_pit
from synthjax.credit.traces import SampledTrace
from synthjax.data.tokenizers import Tokenizer
from synthjax.data.trees import Node
from synthjax.records import Ids, Pair

_KINDS = {1: "right", 0: "wrong", None: "undecided"}  # of traces, by reward


@dataclasses.dataclass(frozen=True)
class ValuedTrace:
  """A sampled trace with what is known of its step values."""

  trace: SampledTrace
  # q_0..q_L: of the bare problem and after each of the L steps; None where unknown, () where all are
  q: tuple[float | None, ...] = ()
  # what each q was estimated from; None, or () for all, where it is known exactly
  counts: tuple[Evidence | None, ...] = ()
  # samples from its prefixes, by the number of steps in the prefix; the correct ones may be chosen
  # against its pit
  continuations: Mapping[int, Sequence[SampledTrace]] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    steps = len(self.trace.steps)
    if self.q and len(self.q) != steps + 1:
      raise files.DataError(
        f"a trace of {steps} steps has {len(self.q)} values q; expected {steps + 1}: that of the "
        "bare problem and one after each step"
      )
    if self.counts and len(self.counts) != len(self.q):
      raise files.DataError(
        f"a trace of {len(self.q)} values q has {len(self.counts)} counts of rollouts; expected one "
        "for each, or none"
      )

  def advantages(self) -> list[float] | None:
    """q_i - q_(i-1) of every step; None where a value is unknown."""
    known = [q for q in self.q if q is not None]
    if len(known) != len(self.trace.steps) + 1:
      return None
    return np.diff(known).tolist()


class Samples(NamedTuple):
  """What was sampled for a problem."""

  problem_id: str
  prompt_ids: Ids
  traces: tuple[ValuedTrace, ...]


class Built(NamedTuple):
  """Pairs, and what became of the traces."""

  pairs: list[Pair]
  report: dict  # counts: pairs, problems, traces, pits by step (1 is the first), what was dropped by reason


def build(samples: Iterable[Samples], cfg: PairConfig, tokenizer: Tokenizer) -> Built:
  """Pairs of every problem, in order; those of a problem depend on its samples and the config alone."""
  pairs: list[Pair] = []
  counts: dict[str, collections.Counter] = {
    name: collections.Counter() for name in ("problems", "traces", "pits", "dropped")
  }
  for of_problem in samples:
    for trace in of_problem.traces:
      counts["traces"][_KINDS[trace.trace.reward]] += 1
    candidates = list(_candidates(of_problem, cfg, tokenizer.eos_id, counts))
    found = list(_select(of_problem, candidates, cfg, tokenizer, counts["dropped"]))
    counts["problems"]["with pairs" if found else "without pairs"] += 1
    pairs += found
  plain = {
    name: {str(key): counter[key] for key in sorted(counter)} for name, counter in counts.items()
  }
  return Built(pairs, {"mode": cfg.mode, "pairs": len(pairs), **plain})


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
  """Levenshtein distance of two token sequences, a column of the table as the bits of two integers (Myers 1999; Hyyrö 2003)."""
  if not one:
    return len(other)
  places: dict[int, int] = collections.defaultdict(int)
  for place, token in enumerate(one):
    places[token] |= 1 << place
  every, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
  rises, falls, distance = every, 0, len(one)  # between a cell and the one above it: +1, -1
  for token in other:
    equal = places.get(token, 0)
    diagonal = (((equal & rises) + rises) ^ rises) | equal
    right, left = (
      falls | (every & ~(diagonal | rises)),
      rises & diagonal,
    )  # between a cell and the one before it: +1, -1
    distance += bool(right & last) - bool(left & last)
    right, left = (right << 1 | 1) & every, left << 1 & every
    rises, falls = left | (every & ~(equal | falls | right)), right & (equal | falls)
  return distance


def tree(prompt_ids: Sequence[int], traces: Sequence[ValuedTrace], eos_id: int) -> Node:
  """All traces of a problem as one prefix tree: every step is one node, with its advantage; end-of-text is within the last step.

  Traces that share a step estimate the same advantage, so the node takes their mean.

  Raises:
    DataError: a value is not known.
  """
  first: _Branches = {}
  for number, trace in enumerate(traces):
    advantages = trace.advantages()
    if advantages is None:
      raise files.DataError(
        f"trace {number}: the value of a prefix is not known; advantage-weighted RL needs all, from the full schedule"
      )
    branches = first
    for step, advantage in zip(
      _ended(trace.trace.steps, trace.trace.complete, eos_id), advantages, strict=True
    ):
      branch = branches.setdefault(step, _Branch([], {}))
      branch.advantages.append(advantage)
      branches = branch.children
  return Node(tuple(prompt_ids), _nodes(first), predicted=False)


class _Branch(NamedTuple):
  advantages: list[float]  # of the traces that take it
  children: "_Branches"


_Branches = dict[Ids, _Branch]


def _nodes(first: _Branches) -> tuple[Node, ...]:
  """The branches as nodes. Without recursion: a trace may have more steps than Python has frames."""
  listed: list[
    tuple[Ids, _Branch, int]
  ] = []  # the last is the place of the branch above, which comes first
  waiting = [(step, branch, -1) for step, branch in first.items()]
  while waiting:
    step, branch, above = waiting.pop()
    waiting += [(*child, len(listed)) for child in branch.children.items()]
    listed.append((step, branch, above))
  below: dict[int, list[Node]] = collections.defaultdict(list)
  for place, (step, branch, above) in reversed(list(enumerate(listed))):
    advantage = statistics.fmean(branch.advantages)
    below[above].append(Node(step, tuple(below[place]), advantage=advantage))
  return tuple(below[-1])


class _Side(NamedTuple):
  """One side of a pair."""

  steps: tuple[Ids, ...]  # end-of-text within the last one where the side has it
  complete: bool  # it has
  advantages: list[float] | None  # of the steps

  def ids(self) -> Ids:
    return tuple(token for step in self.steps for token in step)


class _Candidate(NamedTuple):
  """A pair that could be made."""

  trace: int  # the wrong one's place among the problem's traces
  pit: int | None  # of it, where the mode has one
  before: tuple[Ids, ...]  # steps that both sides go on from
  chosen: _Side
  rejected: _Side


def _candidates(samples: Samples, cfg: PairConfig, eos_id: int, counts) -> Iterator[_Candidate]:
  """All pairs that a problem's traces admit; pits and the traces that have none are counted."""
  right = [trace for trace in samples.traces if trace.trace.reward == 1]
  at_pit = cfg.mode in ("branch", "step")
  for number, trace in enumerate(samples.traces):
    if trace.trace.reward != 0:
      continue
    pit, better = None, right
    if cfg.mode not in ("random", "distant"):
      pit = first_pit(trace.q, cfg.thresholds, trace.counts)
      if pit is None:
        counts["dropped"][
          "trace: no pit within the thresholds"
          if any(q is not None for q in trace.q)
          else "trace: no step values"
        ] += 1
        continue
      pit = _at(pit, len(trace.trace.steps), number, samples.problem_id, cfg)
      counts["pits"][pit] += 1
      better = (
        [ValuedTrace(c) for c in trace.continuations.get(pit - 1, ()) if c.reward == 1]
        if at_pit
        else right
      )
    if not better:
      counts["dropped"][
        "trace: no right continuation" if at_pit else "trace: no right trace of its problem"
      ] += 1
    first = pit - 1 if pit and at_pit else 0
    rejected = _side(trace, first, pit, None if pit else eos_id)
    for other in better:
      chosen = _side(other, 0, 1, None) if cfg.mode == "step" else _side(other, 0, None, eos_id)
      yield _Candidate(number, pit, trace.trace.steps[:first], chosen, rejected)


def _at(pit: int, steps: int, trace: int, problem_id: str, cfg: PairConfig) -> int:
  """The step that stands where the pit does: the pit itself, or for ablations any step of the trace, or its last one."""
  if cfg.pit == "random":
    return 1 + int(
      np.random.default_rng([cfg.seed, int(files.value_hash(problem_id)[:16], 16), trace]).integers(
        steps
      )
    )
  return steps if cfg.pit == "last" else pit


def _side(valued: ValuedTrace, first: int, last: int | None, eos_id: int | None) -> _Side:
  """Steps [first, last) of a trace; an `eos_id` is given to a trace that ended."""
  advantages, trace = valued.advantages(), valued.trace
  steps, complete = trace.steps[first:last], trace.complete and eos_id is not None
  return _Side(_ended(steps, complete, eos_id), complete, advantages and advantages[first:last])


def _ended(steps: tuple[Ids, ...], complete: bool, eos_id: int | None) -> tuple[Ids, ...]:
  return (*steps[:-1], (*steps[-1], eos_id)) if complete and steps and eos_id is not None else steps


def _select(
  samples: Samples, candidates: Sequence[_Candidate], cfg: PairConfig, tokenizer: Tokenizer, dropped
) -> Iterator[Pair]:
  """Candidates in random order, or the most distant first, as far as the caps go; those that teach nothing are left out and counted."""
  random = np.random.default_rng([cfg.seed, int(files.value_hash(samples.problem_id)[:16], 16)])
  order = [candidates[i] for i in random.permutation(len(candidates))]
  if cfg.mode == "distant":
    order.sort(key=lambda c: -edit_distance(c.chosen.ids(), c.rejected.ids()))
  made: collections.Counter[int] = collections.Counter()  # by wrong trace
  seen = set()
  for candidate in order:
    if made.total() >= cfg.per_problem or made[candidate.trace] >= cfg.per_trace:
      dropped["pair: beyond per_problem or per_trace"] += 1
      continue
    pair = _pair(samples, candidate, cfg, tokenizer)
    key = (pair.prefix, pair.chosen, pair.rejected)
    flaw = "the same as another" if key in seen else _flaw(candidate, pair, cfg)
    if flaw:
      dropped[f"pair: {flaw}"] += 1
      continue
    seen.add(key)
    made[candidate.trace] += 1
    yield pair


def _flaw(candidate: _Candidate, pair: Pair, cfg: PairConfig) -> str:
  """Why a pair teaches nothing, or "" where it does."""
  chosen, rejected = candidate.chosen.ids(), candidate.rejected.ids()
  shorter = min(len(chosen), len(rejected))
  if not candidate.chosen.complete and cfg.mode in ("paper", "branch"):
    return "chosen did not end"
  if not shorter:
    return "a side has no tokens"
  if pair.chosen == pair.rejected:
    return "chosen and rejected are the same"
  if chosen[:shorter] == rejected[:shorter]:
    return "one side begins with the other"
  return "no weights" if cfg.weighted and "chosen_weights" not in pair.metadata else ""


def _pair(samples: Samples, candidate: _Candidate, cfg: PairConfig, tokenizer: Tokenizer) -> Pair:
  """The record, with the sampled tokens in its metadata as data/pair_trees.py reads them."""
  _, pit, before, chosen, rejected = candidate
  prefix_ids = [*samples.prompt_ids, *(token for step in before for token in step)]
  prefix = tokenizer.decode(prefix_ids)
  # Decoded with what stands before, so that prefix and side together are the text; end-of-text is no text.
  text = lambda side: tokenizer.decode(
    [*prefix_ids, *side.ids()[: len(side.ids()) - side.complete]]
  )[len(prefix) :]
  metadata = {
    "prefix_ids": prefix_ids,
    "chosen_steps": list(map(list, chosen.steps)),
    "rejected_steps": list(map(list, rejected.steps)),
    "trace": candidate.trace,
    **({"pit": pit} if pit else {}),
  }
  if chosen.advantages is not None and rejected.advantages is not None:
    metadata |= {"chosen_advantages": chosen.advantages, "rejected_advantages": rejected.advantages}
  if cfg.weighted:
    metadata |= _weights(chosen.advantages, rejected.advantages, cfg.normalise)
  return Pair(
    samples.problem_id,
    prefix,
    text(chosen),
    text(rejected),
    cfg.mode,
    chosen.complete,
    rejected.complete,
    metadata,
  )


def _weights(
  chosen: list[float] | None, rejected: list[float] | None, normalise: bool
) -> dict[str, list[float]]:
  """|advantage| of the steps of both sides; empty where some are not known or all are 0."""
  if chosen is None or rejected is None or not any([*chosen, *rejected]):
    return {}
  mean = statistics.fmean(map(abs, [*chosen, *rejected])) if normalise else 1.0
  return {
    "chosen_weights": [abs(a) / mean for a in chosen],
    "rejected_weights": [abs(a) / mean for a in rejected],
  }
