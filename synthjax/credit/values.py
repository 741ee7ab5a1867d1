"""Step values: rollouts from every prefix of a trace estimate how likely it is to end correctly.

All traces go through their schedule together, in rounds: one call of the engine a round. Rollouts
are judged while others are sampled. A rollout depends on the job's seed, the problem, the prefix
and its number alone: not on its order, nor on the other traces.
"""

import collections
import concurrent.futures
import dataclasses
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
  # sampled, with end-of-text where the engine gives log-probs; 0 from engines that give text only
  tokens: int = 0
  undecided: int = 0  # rollouts left out of n
  unanswered: int = 0  # rollouts without an answer: they count as incorrect
  # requests that the engine answered with an error; their prefixes have that many rollouts fewer
  refused: int = 0
  error: str = ""  # the first of those errors


class Valued(NamedTuple):
  """Values of a job's traces, in the order of the traces."""

  values: list[list[StepValue]]  # of the prefixes that the schedule visited, in order
  pits: list[int | None]
  # the first correct rollouts after each prefix that has some, by its number of steps
  correct: list[dict[int, tuple[Sample, ...]]]
  spent: Spent


def estimate(
  traces: Sequence[PromptedTrace], generate: Generate, judge: RolloutJudge, cfg: ValueConfig
) -> Valued:
  """Estimates the values of the traces' prefixes, and finds their pits.

  Args:
    traces: of any problems; prefixes that they share are valued once.
    generate: an engine's, or one that keeps a journal: a job that is run again makes the same
      requests.
    judge: whether a rollout is correct. One without an answer (`no-answer`) is incorrect; other
      undecided ones are left out of n.
    cfg: schedule, number of rollouts, seed.

  Raises:
    DataError: the engine left a request without an answer, or answered one that was not made.
  """
  job = _Job(generate, judge, cfg)
  schedule = SCHEDULES[cfg.schedule]
  prefixes = [_prefixes(prompted) for prompted in traces]
  counts = [_unknown(prompted.trace) for prompted in traces]
  unfinished = list(range(len(traces)))
  while unfinished:
    wanted = {number: schedule(counts[number], cfg) for number in unfinished}
    blocks: list[_Block] = []
    for number, of_trace in wanted.items():
      for step, rollouts in of_trace.items():
        blocks += job.blocks(prefixes[number][step], rollouts)
    job.run(blocks)
    for number, of_trace in wanted.items():
      for step, rollouts in of_trace.items():
        counts[number][step] = job.count(prefixes[number][step], rollouts)
    unfinished = [number for number in unfinished if wanted[number]]
  rows = []
  correct = []
  for number, prompted in enumerate(traces):
    rows.append(_rows(number, prompted.trace.problem_id, counts[number], cfg.best_of))
    correct.append(_kept(job, prefixes[number], counts[number]))
  return Valued(
    values=rows,
    pits=[pit_of(of_trace, cfg) for of_trace in counts],
    correct=correct,
    spent=Spent.from_json({**job.spent, "error": job.error}),
  )


def evidence(
  rows: Sequence[StepValue | None], best_of: int
) -> tuple[tuple[float | None, ...], tuple[pits.Evidence | None, ...]]:
  """(values, what each was estimated from) of the prefixes of a trace, for `pits.first_pit`.

  A missing row gives None twice, and so does the reward of a trace that has ended for what it was
  estimated from.
  """
  values: list[float | None] = []
  sources: list[pits.Evidence | None] = []
  for row in rows:
    values.append(row.q if row else None)
    sources.append(pits.Evidence(row.n, row.c, best_of) if row and row.n else None)
  return tuple(values), tuple(sources)


class Compared(NamedTuple):
  """A schedule beside the full one, on the same rollouts."""

  run: Valued
  times_fewer: float  # rollouts
  agreement: float  # share of traces with the same pit, or none in both
  standard_error: float  # of `agreement`


def compare(
  traces: Sequence[PromptedTrace], generate: Generate, judge: RolloutJudge, cfg: ValueConfig
) -> dict[Schedule, Compared]:
  """Runs every schedule on the same traces, and compares each with the full one."""
  runs: dict[Schedule, Valued] = {}
  for name in SCHEDULES:
    runs[name] = estimate(traces, generate, judge, dataclasses.replace(cfg, schedule=name))
  reference = runs["full"]
  compared = {}
  for name, run in runs.items():
    share, error = pits.agreement(run.pits, reference.pits)
    fewer = reference.spent.rollouts / max(run.spent.rollouts, 1)
    compared[name] = Compared(run, times_fewer=fewer, agreement=share, standard_error=error)
  return compared


class _Prefix(NamedTuple):
  """A problem's prompt and first steps."""

  problem_id: str
  prompt_ids: Ids
  given_ids: Ids  # of the steps
  key: str


def _prefixes(prompted: PromptedTrace) -> list[_Prefix]:
  """Of a trace, from the bare problem on."""
  prompt_ids, trace = prompted
  prefixes = []
  given: Ids = ()
  for step in ((), *trace.steps):
    given += tuple(step)
    key = files.value_hash([trace.problem_id, *prompt_ids, *given])
    prefixes.append(_Prefix(trace.problem_id, tuple(prompt_ids), given, key))
  return prefixes


class _Block(NamedTuple):
  """Some rollouts of a prefix."""

  prefix: _Prefix
  request: Request


class _Judged(NamedTuple):
  """Verdict counts of one block."""

  n: int
  correct: int
  undecided: int
  unanswered: int
  kept: tuple[Sample, ...]  # correct ones


class _Job:
  """The rollouts so far, by block; each block is requested once."""

  def __init__(self, generate: Generate, judge: RolloutJudge, cfg: ValueConfig):
    self.generate = generate
    self.judge = judge
    self.cfg = cfg
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
        id=f"{name[:32]}-{n}",
        prompt_ids=prefix.prompt_ids + prefix.given_ids,
        sampling=cfg.sampling,
        n=n,
        # 31 bits, which fit a signed 32-bit integer
        seed=int(name[-8:], 16) >> 1,
      )
      yield _Block(prefix, request)

  def count(self, prefix: _Prefix, rollouts: int) -> Count:
    """Counts of the first `rollouts` of a prefix."""
    judged = [self.known[block.request.id] for block in self.blocks(prefix, rollouts)]
    return Count(
      asked=rollouts,
      n=sum(block.n for block in judged),
      c=sum(block.correct for block in judged),
      undecided=sum(block.undecided for block in judged),
    )

  def correct(self, prefix: _Prefix, rollouts: int) -> tuple[Sample, ...]:
    """The first correct ones among the first `rollouts` of a prefix, at most `keep`."""
    kept: list[Sample] = []
    for block in self.blocks(prefix, rollouts):
      kept += self.known[block.request.id].kept
    return tuple(kept[: self.cfg.keep])

  def run(self, blocks: Iterable[_Block]) -> None:
    """Samples and judges the blocks that are not known yet."""
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
            f"the engine answered request {result.id!r}, which is not one of the {len(left)} that "
            "are open"
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
        f"the engine ended with {len(left)} of {total} requests unanswered, "
        f"{next(iter(left))!r} among them"
      )

  def _spend(self, block: _Block, result: Result) -> None:
    n = 0 if result.error else block.request.n
    if len(result.samples) != n:
      raise files.DataError(f"request {result.id!r}: {len(result.samples)} samples, expected {n}")
    self.error = self.error or result.error
    tokens = sum(len(sample.log_probs) or len(sample.ids) for sample in result.samples)
    self.spent.update(requests=1, rollouts=n, tokens=tokens, refused=int(bool(result.error)))

  def _judged(self, prefix: _Prefix, result: Result) -> _Judged:
    undecided = unanswered = 0
    correct = []
    for sample in result.samples:
      verdict = self.judge(prefix.problem_id, prefix.given_ids, sample)
      undecided += verdict.reward is None
      unanswered += verdict.reason == NO_ANSWER
      if verdict.correct:
        correct.append(sample)
    return _Judged(
      n=len(result.samples) - undecided,
      correct=len(correct),
      undecided=undecided,
      unanswered=unanswered,
      kept=tuple(correct[: self.cfg.keep]),
    )

  def _settle(self, name: str, future: concurrent.futures.Future[_Judged]) -> None:
    judged = future.result()
    self.known[name] = judged
    self.spent.update(undecided=judged.undecided, unanswered=judged.unanswered)


def _unknown(trace: SampledTrace) -> list[Count]:
  """Counts of every prefix of a trace before anything was sampled."""
  ended = trace.complete and bool(trace.steps)
  reward = trace.reward if trace.complete else None
  return [Count()] * len(trace.steps) + [Count(ended=ended, reward=reward)]


def _kept(
  job: _Job, prefixes: Sequence[_Prefix], counts: Sequence[Count]
) -> dict[int, tuple[Sample, ...]]:
  """Number of steps -> the first correct rollouts after them."""
  kept = {}
  for step, count in enumerate(counts):
    if count.c:
      kept[step] = job.correct(prefixes[step], count.asked)
  return kept


def _rows(number: int, problem_id: str, counts: Sequence[Count], best_of: int) -> list[StepValue]:
  """Values of the prefixes that have rollouts or an end."""
  rows = []
  before: float | None = None
  for step, count in enumerate(counts):
    q = count.value(best_of)
    if count.asked or count.ended:
      row = StepValue(
        problem_id=problem_id,
        trace=number,
        step=step,
        n=count.n,
        c=count.c,
        q=q,
        advantage=None if q is None or before is None else q - before,
        undecided=count.undecided,
        standard_error=count.standard_error(best_of),
      )
      rows.append(row)
    before = q
  return rows
