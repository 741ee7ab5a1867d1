"""Preference pairs and trees of sampled traces with step values: training data of study A.

Modes of pairs (design, "Study A in formulas"); a pit is the first step whose fall in value passes
the thresholds:

- `paper`: prefix = problem; chosen = a correct trace, to its end; rejected = the incorrect trace
  cut at the end of its pit, without end-of-text.
- `branch`: prefix = problem and steps before the pit; chosen = a correct continuation sampled from
  there, to its end; rejected = the pit.
- `step`: as `branch`, chosen cut to its first step; no end-of-text on either side.
- `random`, `distant`: plain DPO, a whole correct trace against a whole incorrect one, drawn at
  random or the most distant by edit distance. A trace that did not end is given no end-of-text.

Pairs consist of the tokens that were sampled; their texts are what these tokens decode to.
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
from synthjax.data.pair_trees import TokenPair, TokenSide
from synthjax.data.tokenizers import Tokenizer
from synthjax.data.trees import Node
from synthjax.records import Ids, Pair

# Names of rewards in reports, which stand in manifests and so keep the old words.
_KINDS = {1: "right", 0: "wrong", None: "undecided"}

_WHOLE_MODES = ("random", "distant")  # pairs of whole traces: no pit, no step values
_PIT_MODES = ("branch", "step")  # the prefix reaches up to the pit


@dataclasses.dataclass(frozen=True)
class ValuedTrace:
  """A sampled trace with what is known of its step values."""

  trace: SampledTrace
  # q_0..q_L: of the bare problem and after each of the L steps; None where unknown, () where all
  # are
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
        f"a trace of {len(self.q)} values q has {len(self.counts)} counts of rollouts; expected "
        "one for each, or none"
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
  """Pairs, and what happened to the traces."""

  pairs: list[TokenPair]
  records: list[Pair]  # the same pairs as they are written to a file
  # counts: pairs, problems, traces, pits by step (1 is the first), what was dropped by reason
  report: dict


class _Report(NamedTuple):
  """Counters of a report."""

  problems: collections.Counter[str]
  traces: collections.Counter[str]
  pits: collections.Counter[int]
  dropped: collections.Counter[str]

  def to_json(self) -> dict:
    row = {}
    for name, counter in self._asdict().items():
      row[name] = {str(key): counter[key] for key in sorted(counter)}
    return row


def build(samples: Iterable[Samples], cfg: PairConfig, tokenizer: Tokenizer) -> Built:
  """Makes the pairs of every problem, in order.

  The pairs of a problem depend on its samples and the config alone.
  """
  report = _Report(*(collections.Counter() for _ in _Report._fields))
  pairs: list[TokenPair] = []
  texts: list[Pair] = []
  for of_problem in samples:
    for valued in of_problem.traces:
      report.traces[_KINDS[valued.trace.reward]] += 1
    candidates = list(_candidates(of_problem, cfg, tokenizer.eos_id, report))
    before = len(pairs)
    for pair, text in _select(of_problem.problem_id, candidates, cfg, tokenizer, report.dropped):
      pairs.append(pair)
      texts.append(text)
    if len(pairs) > before:
      report.problems["with pairs"] += 1
    else:
      report.problems["without pairs"] += 1
  return Built(pairs, texts, {"mode": cfg.mode, "pairs": len(pairs), **report.to_json()})


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
  """Levenshtein distance of two token sequences.

  A column of the table of distances is held as the bits of two integers (Myers 1999; Hyyrö 2003).
  """
  if not one:
    return len(other)
  positions: dict[int, int] = collections.defaultdict(int)
  for position, token in enumerate(one):
    positions[token] |= 1 << position
  mask = (1 << len(one)) - 1
  last = 1 << (len(one) - 1)
  # Whether a cell is 1 more (plus) or 1 less (minus) than the one above it.
  vertical_plus, vertical_minus = mask, 0
  distance = len(one)
  for token in other:
    equal = positions.get(token, 0)
    diagonal = (((equal & vertical_plus) + vertical_plus) ^ vertical_plus) | equal
    # The same against the cell to the left.
    horizontal_plus = vertical_minus | (mask & ~(diagonal | vertical_plus))
    horizontal_minus = vertical_plus & diagonal
    distance += bool(horizontal_plus & last) - bool(horizontal_minus & last)
    horizontal_plus = (horizontal_plus << 1 | 1) & mask
    horizontal_minus = horizontal_minus << 1 & mask
    diagonal_zero = equal | vertical_minus
    vertical_plus = horizontal_minus | (mask & ~(diagonal_zero | horizontal_plus))
    vertical_minus = horizontal_plus & diagonal_zero
  return distance


def tree(prompt_ids: Sequence[int], traces: Sequence[ValuedTrace], eos_id: int) -> Node:
  """All traces of a problem as one prefix tree: a node a step, with the step's advantage.

  End-of-text stands within the last step. Traces that share a step estimate the same advantage, so
  the node has their mean.

  Raises:
    DataError: a value is unknown.
  """
  first: _Branches = {}
  for number, valued in enumerate(traces):
    advantages = valued.advantages()
    if advantages is None:
      raise files.DataError(
        f"trace {number}: the value of a prefix is not known; advantage-weighted RL needs all, "
        "from the full schedule"
      )
    steps = valued.trace.steps
    if valued.trace.complete:
      steps = _with_end(steps, eos_id)
    branches = first
    for step, advantage in zip(steps, advantages, strict=True):
      branch = branches.setdefault(step, _Branch([], {}))
      branch.advantages.append(advantage)
      branches = branch.children
  return Node(tuple(prompt_ids), _nodes(first), predicted=False)


class _Branch(NamedTuple):
  advantages: list[float]  # one a trace that takes it
  children: "_Branches"


_Branches = dict[Ids, _Branch]


class _Placed(NamedTuple):
  """A branch in a list in which parents come before their children."""

  step: Ids
  branch: _Branch
  parent: int  # index in the list; -1 for the root


def _nodes(first: _Branches) -> tuple[Node, ...]:
  """The branches as nodes."""
  # Without recursion: a trace may have more steps than Python has frames.
  placed: list[_Placed] = []
  waiting = [_Placed(step, branch, -1) for step, branch in first.items()]
  while waiting:
    entry = waiting.pop()
    for step, child in entry.branch.children.items():
      waiting.append(_Placed(step, child, len(placed)))
    placed.append(entry)
  children: dict[int, list[Node]] = collections.defaultdict(list)
  for index in reversed(range(len(placed))):
    step, branch, parent = placed[index]
    node = Node(step, tuple(children[index]), advantage=statistics.fmean(branch.advantages))
    children[parent].append(node)
  return tuple(children[-1])


def _candidates(
  samples: Samples, cfg: PairConfig, eos_id: int, report: _Report
) -> Iterator[TokenPair]:
  """All pairs that a problem's traces admit; pits and traces that have none are counted."""
  correct = [valued for valued in samples.traces if valued.trace.reward == 1]
  for number, valued in enumerate(samples.traces):
    if valued.trace.reward != 0:
      continue
    pit = None
    if cfg.mode not in _WHOLE_MODES:
      pit = first_pit(valued.q, cfg.thresholds, valued.counts)
      if pit is None:
        report.dropped[_without_pit(valued)] += 1
        continue
      pit = _at_choice(pit, len(valued.trace.steps), number, samples.problem_id, cfg)
      report.pits[pit] += 1
    if pit and cfg.mode in _PIT_MODES:
      start = pit - 1
      better = _correct_continuations(valued, start)
      missing = "trace: no right continuation"
    else:
      start = 0
      better = correct
      missing = "trace: no right trace of its problem"
    if not better:
      report.dropped[missing] += 1
    for other in better:
      yield TokenPair(
        problem_id=samples.problem_id,
        prefix_ids=samples.prompt_ids + _joined(valued.trace.steps[:start]),
        chosen=_chosen_side(other, cfg, eos_id),
        rejected=_part(valued, start, pit) if pit else _whole(valued, eos_id),
        trace=number,
        pit=pit,
      )


def _without_pit(valued: ValuedTrace) -> str:
  """Why an incorrect trace has no pit."""
  if any(q is not None for q in valued.q):
    return "trace: no pit within the thresholds"
  return "trace: no step values"


def _at_choice(pit: int, steps: int, trace: int, problem_id: str, cfg: PairConfig) -> int:
  """The step that the pair is about: the pit, or for ablations a random or the last step."""
  if cfg.pit == "random":
    random = np.random.default_rng([cfg.seed, _seed_of(problem_id), trace])
    return 1 + int(random.integers(steps))
  if cfg.pit == "last":
    return steps
  return pit


def _seed_of(problem_id: str) -> int:
  return int(files.value_hash(problem_id)[:16], 16)


def _correct_continuations(valued: ValuedTrace, steps: int) -> list[ValuedTrace]:
  """Correct samples from the prefix of so many steps; they have no step values."""
  sampled = valued.continuations.get(steps, ())
  return [ValuedTrace(trace) for trace in sampled if trace.reward == 1]


def _chosen_side(valued: ValuedTrace, cfg: PairConfig, eos_id: int) -> TokenSide:
  if cfg.mode == "step":
    return _part(valued, 0, 1)
  return _whole(valued, eos_id)


def _whole(valued: ValuedTrace, eos_id: int) -> TokenSide:
  """All of a trace, with end-of-text where it ended."""
  side = _part(valued, 0, None)
  if not valued.trace.complete:
    return side
  return dataclasses.replace(side, steps=_with_end(side.steps, eos_id), complete=True)


def _part(valued: ValuedTrace, first: int, last: int | None) -> TokenSide:
  """Steps [first, last) of a trace, without end-of-text."""
  advantages = valued.advantages()
  if advantages is not None:
    advantages = advantages[first:last]
  return TokenSide(steps=valued.trace.steps[first:last], complete=False, advantages=advantages)


def _with_end(steps: tuple[Ids, ...], eos_id: int) -> tuple[Ids, ...]:
  """The steps with end-of-text within the last one."""
  if not steps:
    return steps
  return (*steps[:-1], (*steps[-1], eos_id))


def _joined(steps: Iterable[Ids]) -> Ids:
  return tuple(token for step in steps for token in step)


def _select(
  problem_id: str,
  candidates: Sequence[TokenPair],
  cfg: PairConfig,
  tokenizer: Tokenizer,
  dropped: collections.Counter[str],
) -> Iterator[tuple[TokenPair, Pair]]:
  """Pairs of a problem up to the config's limits, in random order or the most distant first.

  Those that are not taken are counted by reason.
  """
  random = np.random.default_rng([cfg.seed, _seed_of(problem_id)])
  order = [candidates[i] for i in random.permutation(len(candidates))]
  if cfg.mode == "distant":
    order.sort(key=lambda pair: -edit_distance(pair.chosen.ids(), pair.rejected.ids()))
  taken: collections.Counter[int | None] = collections.Counter()  # by incorrect trace
  seen = set()
  for candidate in order:
    if taken.total() >= cfg.per_problem or taken[candidate.trace] >= cfg.per_trace:
      dropped["pair: beyond per_problem or per_trace"] += 1
      continue
    pair = _weighted(candidate, cfg.normalise) if cfg.weighted else candidate
    text = _text(pair, cfg, tokenizer)
    key = (text.prefix, text.chosen, text.rejected)
    flaw = "the same as another" if key in seen else _flaw(pair, text, cfg)
    if flaw:
      dropped[f"pair: {flaw}"] += 1
      continue
    seen.add(key)
    taken[pair.trace] += 1
    yield pair, text


def _flaw(pair: TokenPair, text: Pair, cfg: PairConfig) -> str:
  """Why a pair teaches nothing, or "" where it does."""
  chosen, rejected = pair.chosen.ids(), pair.rejected.ids()
  shorter = min(len(chosen), len(rejected))
  if not pair.chosen.complete and cfg.mode in ("paper", "branch"):
    return "chosen did not end"
  if not shorter:
    return "a side has no tokens"
  if text.chosen == text.rejected:
    return "chosen and rejected are the same"
  if chosen[:shorter] == rejected[:shorter]:
    return "one side begins with the other"
  if cfg.weighted and pair.chosen.weights is None:
    return "no weights"
  return ""


def _weighted(pair: TokenPair, normalise: bool) -> TokenPair:
  """The pair with |advantage| as the weight of each step.

  It stays without weights where an advantage is unknown or all are 0.
  """
  chosen, rejected = pair.chosen.advantages, pair.rejected.advantages
  if chosen is None or rejected is None or not any([*chosen, *rejected]):
    return pair
  mean = 1.0
  if normalise:
    mean = statistics.fmean(map(abs, [*chosen, *rejected]))
  return dataclasses.replace(
    pair,
    chosen=dataclasses.replace(pair.chosen, weights=[abs(a) / mean for a in chosen]),
    rejected=dataclasses.replace(pair.rejected, weights=[abs(a) / mean for a in rejected]),
  )


def _text(pair: TokenPair, cfg: PairConfig, tokenizer: Tokenizer) -> Pair:
  """The pair as it is written: its texts, with the tokens in the metadata."""
  prefix = tokenizer.decode(list(pair.prefix_ids))

  def decoded(side: TokenSide) -> str:
    # Decoded after the prefix, so that prefix and side together are the text. End-of-text is no
    # text.
    ids = side.ids()
    ids = ids[: len(ids) - side.complete]
    return tokenizer.decode([*pair.prefix_ids, *ids])[len(prefix) :]

  return Pair(
    problem_id=pair.problem_id,
    prefix=prefix,
    chosen=decoded(pair.chosen),
    rejected=decoded(pair.rejected),
    mode=cfg.mode,
    chosen_complete=pair.chosen.complete,
    rejected_complete=pair.rejected.complete,
    metadata=pair.metadata(),
  )
