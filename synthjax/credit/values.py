"""Step values: what rollouts from every prefix of a trace say about its steps.

All traces go through their schedule together, in rounds: one call of the engine a round. Rollouts are judged while others are sampled.
A rollout is drawn from the job's seed, the problem, the prefix and its number alone: not from its order, nor from the other traces.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from synthjax import files, progress
from synthjax.config.credit import Schedule, ValueConfig
from synthjax.credit import pits
from synthjax.credit.schedules import SCHEDULES, Count, pit_of
from synthjax.credit.traces import PromptedTrace, SampledTrace
from synthjax.records import NO_ANSWER, Ids, Record, StepValue, Verdict
from synthjax.rollout.requests import Generate, Request, Result, Sample

# (problem id, ids of the steps before the rollout, the rollout); called from several threads
RolloutJudge = Callable[[str, Ids, Sample], Verdict]

_WAITING = 1024  # results that may wait for their verdicts before the next one is taken


@dataclasses.dataclass(frozen=True)
class Spent(Record):
  """What a job took."""

  rounds: int = 0  # calls of the engine
  requests: int = 0
  rollouts: int = 0
  tokens: int = 0  # sampled, end-of-text among them where the engine gives log-probs; engines that give text only count none
  undecided: int = 0  # rollouts left out of n
  unanswered: int = 0  # rollouts without an answer: they failed
  refused: int = 0  # requests that the engine answered with an error; their prefixes have that many rollouts fewer
  error: str = ""  # the first of those errors


class Valued(NamedTuple):
  """Values of a job's traces, in the order of the traces."""

  values: list[list[StepValue]]  # of the prefixes that the schedule visited, in order
  pits: list[int | None]
  right: list[
    dict[int, tuple[Sample, ...]]
  ]  # the first right rollouts after each prefix that has some, by its number of steps
  spent: Spent


def estimate(
  traces: Sequence[PromptedTrace], generate: Generate, judge: RolloutJudge, cfg: ValueConfig
) -> Valued:
  """Values of the traces' prefixes and their pits.

  Args:
    traces: of any problems; prefixes that they share are valued once.
    generate: an engine's, or one that keeps a journal: the requests of a job are the same each time it is run.
    judge: whether a rollout is right. One without an answer (`no-answer`) has failed; other undecided ones are left out of n.
    cfg: schedule, number of rollouts, seed.

  Raises:
    DataError: the engine left a request without an answer, or answered what nobody asked.
  """
  job = _Job(generate, judge, cfg)
  prefixes = [_prefixes(prompted) for prompted in traces]
  counts = [_unknown(prompted.trace) for prompted in traces]
  unfinished = list(range(len(traces)))
  while unfinished:
    more = {i: SCHEDULES[cfg.schedule](counts[i], cfg) for i in unfinished}
    asked = [
      (i, step, rollouts) for i, of_trace in more.items() for step, rollouts in of_trace.items()
    ]
    job.run(
      [block for i, step, rollouts in asked for block in job.blocks(prefixes[i][step], rollouts)]
    )
    for i, step, rollouts in asked:
      counts[i][step] = job.count(prefixes[i][step], rollouts)
    unfinished = [i for i in unfinished if more[i]]
  found = [pit_of(own, cfg) for own in counts]
  rows = [
    _rows(number, prompted.trace.problem_id, own, cfg.best_of)
    for number, (prompted, own) in enumerate(zip(traces, counts))
  ]
  right = [
    {step: job.right(prefixes[i][step], count.asked) for step, count in enumerate(own) if count.c}
    for i, own in enumerate(counts)
  ]
  return Valued(rows, found, right, Spent.from_json({**job.spent, "error": job.error}))


def evidence(
  rows: Sequence[StepValue | None], best_of: int
) -> tuple[tuple[float | None, ...], tuple[pits.Evidence | None, ...]]:
  """(values, what each was estimated from) of the prefixes of a trace, as `pits.first_pit` takes them; None where a row is missing."""
  q = tuple(row.q if row else None for row in rows)
  return q, tuple(pits.Evidence(row.n, row.c, best_of) if row and row.n else None for row in rows)


class Compared(NamedTuple):
  """A schedule beside the full one, on the same rollouts."""

  run: Valued
  times_fewer: float  # rollouts
  agreement: float  # share of traces with the same pit, or none in both
  standard_error: float  # of `agreement`


def compare(
  traces: Sequence[PromptedTrace], generate: Generate, judge: RolloutJudge, cfg: ValueConfig
) -> dict[Schedule, Compared]:
  """Runs every schedule on the same traces: what each spends, and how often its pits agree with the full one's."""
  runs = {
    name: estimate(traces, generate, judge, dataclasses.replace(cfg, schedule=name))
    for name in SCHEDULES
  }
  reference = runs["full"]
  return {
    name: Compared(
      run,
      reference.spent.rollouts / max(run.spent.rollouts, 1),
      *pits.agreement(run.pits, reference.pits),
    )
    for name, run in runs.items()
  }


class _Prefix(NamedTuple):
  """A problem's prompt and first steps."""

  problem_id: str
  prompt_ids: Ids
  given_ids: Ids  # of the steps
  key: str


def _prefixes(prompted: PromptedTrace) -> list[_Prefix]:
  prompt_ids, trace = prompted
  found: list[_Prefix] = []
  given: Ids = ()
  for step in ((), *trace.steps):
    given += tuple(step)
    key = files.value_hash([trace.problem_id, *prompt_ids, *given])
    found.append(_Prefix(trace.problem_id, tuple(prompt_ids), given, key))
  return found


class _Block(NamedTuple):
  """Some rollouts of a prefix."""

  prefix: _Prefix
  request: Request


class _Judged(NamedTuple):
  """What became of a block."""

  n: int
  right: int
  undecided: int
  unanswered: int
  kept: tuple[Sample, ...]  # right ones


class _Job:
  """What the rollouts said so far: each block is asked for once."""

  def __init__(self, generate: Generate, judge: RolloutJudge, cfg: ValueConfig):
    self.generate, self.judge, self.cfg = generate, judge, cfg
    self.known: dict[str, _Judged] = {}  # by request id
    self.spent: collections.Counter[str] = collections.Counter()
    self.error = ""

  def blocks(self, prefix: _Prefix, rollouts: int) -> Iterator[_Block]:
    """The requests for the first `rollouts` of a prefix."""
    cfg = self.cfg
    for first in range(0, rollouts, cfg.block):
      n = min(cfg.block, cfg.rollouts - first)
      name = files.value_hash([cfg.seed, prefix.key, first])
      request = Request(
        f"{name[:32]}-{n}",
        prompt_ids=prefix.prompt_ids + prefix.given_ids,
        sampling=cfg.sampling,
        n=n,
        seed=int(name[-8:], 16) >> 1,
      )  # 31 bits
      yield _Block(prefix, request)

  def count(self, prefix: _Prefix, rollouts: int) -> Count:
    """Of the first `rollouts` of a prefix."""
    found = [self.known[block.request.id] for block in self.blocks(prefix, rollouts)]
    return Count(
      rollouts,
      sum(f.n for f in found),
      sum(f.right for f in found),
      sum(f.undecided for f in found),
    )

  def right(self, prefix: _Prefix, rollouts: int) -> tuple[Sample, ...]:
    """The first right ones among the first `rollouts` of a prefix."""
    kept = (
      sample
      for block in self.blocks(prefix, rollouts)
      for sample in self.known[block.request.id].kept
    )
    return tuple(itertools.islice(kept, self.cfg.keep))

  def run(self, blocks: Iterable[_Block]) -> None:
    """Samples and judges those of the blocks that are not known."""
    left = {block.request.id: block for block in blocks if block.request.id not in self.known}
    if not left:
      return
    total = len(left)
    self.spent["rounds"] += 1
    waiting: collections.deque[tuple[str, concurrent.futures.Future[_Judged]]] = collections.deque()
    with (
      concurrent.futures.ThreadPoolExecutor(self.cfg.threads) as threads,
      progress.bar(f"values, round {self.spent['rounds']}", total, "requests") as advance,
    ):
      for result in self.generate([block.request for block in left.values()]):
        block = left.pop(result.id, None)
        if block is None:
          raise files.DataError(
            f"the engine answered request {result.id!r}, which is not one of the {len(left)} that are open"
          )
        self._spend(block, result)
        waiting.append((result.id, threads.submit(self._judged, block.prefix, result)))
        while waiting and (waiting[0][1].done() or len(waiting) > _WAITING):
          self._settle(*waiting.popleft())
        advance(1)
      for name, judged in waiting:
        self._settle(name, judged)
    if left:
      raise files.DataError(
        f"the engine ended with {len(left)} of {total} requests unanswered, {next(iter(left))!r} among them"
      )

  def _spend(self, block: _Block, result: Result) -> None:
    n = 0 if result.error else block.request.n
    if len(result.samples) != n:
      raise files.DataError(f"request {result.id!r}: {len(result.samples)} samples, expected {n}")
    self.error = self.error or result.error
    tokens = sum(len(sample.log_probs) or len(sample.ids) for sample in result.samples)
    self.spent.update(requests=1, rollouts=n, tokens=tokens, refused=int(bool(result.error)))

  def _judged(self, prefix: _Prefix, result: Result) -> _Judged:
    verdicts = [
      self.judge(prefix.problem_id, prefix.given_ids, sample) for sample in result.samples
    ]
    unanswered = sum(verdict.reason == NO_ANSWER for verdict in verdicts)
    undecided = sum(verdict.reward is None for verdict in verdicts)
    right = [sample for sample, verdict in zip(result.samples, verdicts) if verdict.correct]
    return _Judged(
      len(verdicts) - undecided, len(right), undecided, unanswered, tuple(right[: self.cfg.keep])
    )

  def _settle(self, name: str, judged: concurrent.futures.Future[_Judged]) -> None:
    self.known[name] = judged.result()
    self.spent.update(undecided=self.known[name].undecided, unanswered=self.known[name].unanswered)


def _unknown(trace: SampledTrace) -> list[Count]:
  """What is known of every prefix of a trace before anything was sampled."""
  ended = trace.complete and bool(trace.steps)
  reward = trace.reward if trace.complete else None
  return [Count()] * len(trace.steps) + [Count(ended=ended, reward=reward)]


def _rows(number: int, problem_id: str, counts: Sequence[Count], best_of: int) -> list[StepValue]:
  rows = []
  before: float | None = None
  for step, count in enumerate(counts):
    q = count.value(best_of)
    if count.asked or count.ended:
      advantage = None if q is None or before is None else q - before
      rows.append(
        StepValue(
          problem_id,
          number,
          step,
          count.n,
          count.c,
          q,
          advantage,
          count.undecided,
          count.standard_error(best_of),
        )
      )
    before = q
  return rows
