"""Traces sampled from a policy, split into steps and judged: the source of self-generated data."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from synthjax import files
from synthjax.config.credit import Sampling
from synthjax.credit import steps
from synthjax.data.formats import Example
from synthjax.data.tokenizers import Tokenizer
from synthjax.records import Ids, Record, Trace, Verdict
from synthjax.rollout.requests import Generate, Request, Sample
from synthjax.verify import extract, sets
from synthjax.verify.pool import Pool


@dataclasses.dataclass(frozen=True)
class SampledTrace(Record):
  """A trace, or a part of one, as it was sampled from a policy."""

  problem_id: str
  text: str
  steps: tuple[Ids, ...]  # without the end-of-text token
  verdict: Verdict  # on the answer of the whole trace
  complete: bool = True  # the policy ended it

  @property
  def reward(self) -> int | None:
    """1 for a correct trace, 0 for an incorrect one, None for an undecided one."""
    return self.verdict.reward


class PromptedTrace(NamedTuple):
  """A trace with the tokens that it continues."""

  prompt_ids: Ids  # of the problem, and of the steps before where it is a part of a trace
  trace: SampledTrace

  def to_json(self) -> dict:
    """What its step values depend on; stages hash it, so its keys stay as they are."""
    trace = self.trace
    row: dict[str, Any] = {
      "problem_id": trace.problem_id,
      "prompt_ids": list(self.prompt_ids),
      "steps": [list(step) for step in trace.steps],
    }
    if not trace.complete:
      row["complete"] = False
    elif trace.reward is not None:
      row["reward"] = trace.reward
    return row


class Judge:
  """Gives verdicts on responses to known problems.

  Args:
    answers: problem id -> gold answer.
    mode: where the final answer stands, see `verify.extract`.
    tokenizer: of the policy.
    pool: compares answers.
  """

  def __init__(self, answers: Mapping[str, str], mode: str, tokenizer: Tokenizer, pool: Pool):
    self.answers = answers
    self.mode = mode
    self.tokenizer = tokenizer
    self.pool = pool

  def __call__(self, problem_id: str, given_ids: Ids, sample: Sample) -> Verdict:
    """The verdict on a rollout after the given ids of a response."""
    text = sample.text
    if given_ids:
      text = self.tokenizer.decode([*given_ids, *sample.ids])
    return self.pool.compare(self.answers[problem_id], extract.extract(text, self.mode))


@dataclasses.dataclass(frozen=True)
class Splitting:
  """How responses are split into steps."""

  rule: str  # see `credit.steps`
  limit: int = 32  # most steps


def sample_traces(
  problems: Sequence[Example],
  generate: Generate,
  judge: Judge,
  sampling: Sampling,
  n: int,
  seed: int,
  splitting: Splitting,
) -> Iterator[SampledTrace]:
  """Samples `n` traces of every problem; yields them problem by problem, as problems are finished.

  Raises:
    DataError: the engine refused a problem.
  """
  tokenizer = judge.tokenizer
  requests = []
  for problem in problems:
    prompt_ids = tuple(tokenizer.encode(problem.inputs))
    requests.append(Request(problem.id, prompt_ids=prompt_ids, sampling=sampling, n=n, seed=seed))
  for result in generate(requests):
    if result.error:
      raise files.DataError(
        f"problem {result.id!r} could not be sampled: {result.error}; leave it out, or make room "
        "for it"
      )
    for sample in result.samples:
      spans = steps.spans(sample.text, splitting.rule, splitting.limit)
      yield SampledTrace(
        problem_id=result.id,
        text=sample.text,
        steps=tuple(tuple(step) for step in steps.token_spans(sample.ids, spans, tokenizer)),
        verdict=judge(result.id, (), sample),
        complete=sample.finish == "stop",
      )


def distinct_correct(traces: Sequence[SampledTrace], most: int) -> list[SampledTrace]:
  """Distinct correct traces that ended, at most `most` a problem: the positives of RFT."""
  ended = [trace for trace in traces if trace.complete]
  texts = []
  for number, trace in enumerate(ended):
    texts.append(Trace(trace.problem_id, trace.text, metadata={"number": number}))
  distinct = sets.build(texts, [trace.verdict for trace in ended], near=False).positive
  taken: collections.Counter[str] = collections.Counter()
  kept = []
  for text in distinct:
    taken[text.problem_id] += 1
    if taken[text.problem_id] <= most:
      kept.append(ended[text.metadata["number"]])
  return kept


def traces_to_value(
  traces: Sequence[SampledTrace], most_incorrect: int, correct_too: bool
) -> list[SampledTrace]:
  """Traces that get step values.

  These are the first `most_incorrect` incorrect ones of every problem, and with `correct_too` all
  correct ones. A trace without steps has none to value.
  """
  wanted = []
  incorrect: collections.Counter[str] = collections.Counter()
  for trace in traces:
    chosen = False
    if trace.reward == 0:
      incorrect[trace.problem_id] += 1
      chosen = incorrect[trace.problem_id] <= most_incorrect
    elif trace.reward == 1:
      chosen = correct_too
    if chosen and trace.steps:
      wanted.append(trace)
  return wanted
