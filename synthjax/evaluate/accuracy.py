"""Exact-match accuracy of a policy on a task's test problems."""

import collections
import dataclasses
import math
from collections.abc import Sequence

from synthjax import files, schema
from synthjax.data.sources import Example
from synthjax.data.tokenizers import Tokenizer
from synthjax.evaluate import decode
from synthjax.generate.worlds import shop
from synthjax.model.transformer import Params, Transformer
from synthjax.verify import extract, numbers

# Where each task's policy puts its final answer.
ANSWER_MODE = {"world": "final_line", "gsm8k": "hash", "math": "boxed"}


@dataclasses.dataclass(frozen=True)
class Score:
  """Accuracy with its standard error over problems."""

  problems: int
  right: int
  undecided: dict[str, int]  # reason -> number; counted as wrong
  truncated: int  # responses that did not end by themselves
  steps: dict[str, int]  # embedded world only: number of right, leap and wrong steps in all responses

  @property
  def accuracy(self) -> float:
    return self.right / self.problems

  @property
  def error(self) -> float:
    """Standard error of the accuracy (binomial; every problem answered once)."""
    return math.sqrt(self.accuracy * (1 - self.accuracy) / self.problems)

  def describe(self) -> str:
    return f"{100 * self.accuracy:.1f} ± {100 * self.error:.1f} %"

  def to_json(self) -> dict:
    return {**dataclasses.asdict(self), "accuracy": self.accuracy, "standard_error": self.error}


def evaluate(model: Transformer, params: Params, tokenizer: Tokenizer, examples: Sequence[Example], experiment: schema.Experiment,
             out: files.Path) -> Score:
  """Answers every problem greedily, judges the answers and keeps every response with its verdict in `out` (JSONL)."""
  cfg = experiment.evaluate
  mode = ANSWER_MODE[experiment.data.task] if cfg.answer == "task" else cfg.answer
  prompts = [tokenizer.encode(e.inputs) for e in examples]
  responses = decode.greedy(model, params, prompts, cfg.batch_size, cfg.max_new_tokens, tokenizer)
  undecided: collections.Counter[str] = collections.Counter()
  rows, right, truncated = [], 0, 0
  steps: collections.Counter[str] = collections.Counter()
  for example, (ids, ended) in zip(examples, responses):
    text = tokenizer.decode(ids)
    found = extract.extract(text, mode)
    verdict = numbers.compare(example.answer, found)
    right += verdict.reward
    truncated += not ended
    undecided[verdict.reason] += verdict.value == "undecided"
    judged = shop.judge_steps(example.inputs, text) if experiment.data.task == "world" else []
    steps.update(judged)
    rows.append({"id": example.id, "response": text, "answer": found, "gold": example.answer, "ended": ended, **verdict.to_json(),
                 **({"steps": judged} if judged else {})})
  files.write_jsonl(out, rows)
  return Score(len(examples), right, dict(+undecided), truncated, dict(steps))
