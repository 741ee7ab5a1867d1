"""Traces drawn from a policy, split into steps and judged: what self-generated data are made of."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from synthjax import files
from synthjax.config.credit import Sampling
from synthjax.credit import steps
from synthjax.credit.values import Generate, Ids
from synthjax.data.formats import Example
from synthjax.data.tokenizers import Tokenizer
from synthjax.records import Record, Trace, Verdict
from synthjax.rollout.requests import Request, Sample
from synthjax.verify import extract, sets
from synthjax.verify.pool import Pool


@dataclasses.dataclass(frozen=True)
class Drawn(Record):
  """A trace as it was sampled."""

  problem_id: str
  text: str
  steps: tuple[tuple[int, ...], ...]  # ids, without end-of-text
  verdict: Verdict
  complete: bool = True  # the policy ended it

  def reward(self) -> int | None:
    """As `pairs.Sampled.reward`: no answer is a wrong one."""
    return (
      self.verdict.reward
      if self.verdict.value != "undecided" or self.verdict.reason == "no-answer"
      else None
    )


class Judge:
  """Verdicts on responses to known problems.

  Args:
    answers: problem id -> gold answer.
    mode: where the final answer stands, see `verify.extract`.
    tokenizer: of the policy.
    pool: that compares.
  """

  def __init__(self, answers: Mapping[str, str], mode: str, tokenizer: Tokenizer, pool: Pool):
    self.answers, self.mode, self.tokenizer, self.pool = answers, mode, tokenizer, pool

  def __call__(self, problem_id: str, given_ids: Ids, sample: Sample) -> Verdict:
    """On a rollout after the given ids of a response."""
    text = self.tokenizer.decode([*given_ids, *sample.ids]) if given_ids else sample.text
    return self.pool.compare(self.answers[problem_id], extract.extract(text, self.mode))


@dataclasses.dataclass(frozen=True)
class Splitting:
  """How responses fall into steps."""

  rule: str  # see `data.steps`
  limit: int = 32  # most steps


def draw(
  problems: Sequence[Example],
  generate: Generate,
  judge: Judge,
  how: Sampling,
  n: int,
  seed: int,
  splitting: Splitting,
) -> Iterator[Drawn]:
  """`n` traces of every problem, problem by problem as they are finished.

  Raises:
    DataError: the engine refused a problem.
  """
  tokenizer, by_id = judge.tokenizer, {problem.id: problem for problem in problems}
  requests = [
    Request(p.id, prompt_ids=tuple(tokenizer.encode(p.inputs)), sampling=how, n=n, seed=seed)
    for p in problems
  ]
  for result in generate(requests):
    if result.error:
      raise files.DataError(
        f"problem {result.id!r} could not be sampled: {result.error}; leave it out, or make room for it"
      )
    for sample in result.samples:
      spans = steps.spans(sample.text, splitting.rule, splitting.limit)
      pieces = tuple(tuple(step) for step in steps.token_spans(sample.ids, spans, tokenizer))
      yield Drawn(
        by_id[result.id].id,
        sample.text,
        pieces,
        judge(result.id, (), sample),
        sample.finish == "stop",
      )


def right(drawn: Sequence[Drawn], most: int) -> list[Drawn]:
  """Distinct right traces that ended, at most so many a problem: the positives of RFT."""
  whole = [d for d in drawn if d.complete]
  traces = [Trace(d.problem_id, d.text, metadata={"number": i}) for i, d in enumerate(whole)]
  taken: collections.Counter[str] = collections.Counter()
  kept = []
  for trace in sets.build(traces, [d.verdict for d in whole], near=False).positive:
    taken[trace.problem_id] += 1
    if taken[trace.problem_id] <= most:
      kept.append(whole[trace.metadata["number"]])
  return kept


def to_value(drawn: Sequence[Drawn], most_wrong: int, right_too: bool) -> list[Drawn]:
  """Those that get step values: the first wrong ones of every problem, and the right ones where asked."""
  wanted, wrong = [], collections.Counter[str]()
  for d in drawn:
    reward = d.reward()
    wrong[d.problem_id] += reward == 0
    if d.steps and (
      (reward == 0 and wrong[d.problem_id] <= most_wrong) or (reward == 1 and right_too)
    ):
      wanted.append(d)
  return wanted
