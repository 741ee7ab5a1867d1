"""Evaluation protocols by name: which problems, which prompt, where the answer stands. A score means nothing without them."""

import dataclasses
import typing

from synthjax import files, shipped
from synthjax.config import fields, schema
from synthjax.data.formats import Example
from synthjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A task asked in one way."""

  name: str
  task: schema.TASK  # of data/formats.py
  mode: str  # where the final answer stands, see verify/extract.py
  shots: str = ""  # file of worked examples below data/prompts; "": the prompt that policies are fine-tuned with here
  template: str = ""  # of a problem and its worked examples, with {question}
  stop: tuple[str, ...] = ()  # where a response ends, besides end-of-text

  def prompt(self, example: Example) -> str:
    """What the policy is shown."""
    return (
      self.preamble() + self.template.format(question=example.question)
      if self.template
      else example.inputs
    )

  def preamble(self) -> str:
    """The worked examples."""
    if not self.shots:
      return ""
    rows = files.read_jsonl(shipped.folder("prompts") / f"{self.shots}.jsonl")
    return "".join(
      f"{self.template.format(question=row['question'])} {row['solution']}\n\n" for row in rows
    )

  def record(self) -> dict:
    """What stands beside a score: the prompt's text and hash, and how answers are found."""
    text = self.preamble() + (self.template or "(as in fine-tuning)")
    return {
      "protocol": self.name,
      "task": self.task,
      "prompt": text,
      "prompt_hash": files.value_hash(text),
      "extractor": self.mode,
      "stop": list(self.stop),
    }


_WEI = ("gsm8k_wei8", "Q: {question}\nA:", ("\nQ:", "\n\n"))
PROTOCOLS = {
  protocol.name: protocol
  for protocol in (
    # Eight worked examples of Wei et al. 2022 (arXiv 2201.11903), or none and GSM8K's own form; flexible takes the last number.
    Protocol("gsm8k_strict", "gsm8k", "answer_is", *_WEI),
    Protocol("gsm8k_flexible", "gsm8k", "last_number", *_WEI),
    Protocol("gsm8k_strict_0", "gsm8k", "hash"),
    Protocol("gsm8k_flexible_0", "gsm8k", "last_number"),
    # The first of the task's usual modes that finds an answer, for models that were not told a form.
    Protocol("gsm8k_any_0", "gsm8k", "gsm8k_order"),
    Protocol("math_any", "math", "math_order"),
    Protocol("math_boxed", "math", "boxed"),
    # Four worked examples of Lewkowycz et al. 2022 (arXiv 2206.14858).
    Protocol(
      "math_minerva4",
      "math",
      "minerva",
      "math_minerva4",
      "Problem:\n{question}\n\nSolution:\n",
      ("Problem:", "I hope it is correct."),
    ),
    Protocol("math500_boxed", "math500", "boxed"),
    Protocol("svamp", "svamp", "hash"),
    Protocol("gsm_hard", "gsm_hard", "hash"),
    Protocol("aqua", "aqua", "hash"),
    Protocol("world", "world", "final_line"),
  )
}
# How a policy that was fine-tuned on a task answers it.
_OF_TASK = {
  "world": "world",
  "gsm8k": "gsm8k_strict_0",
  "math": "math_boxed",
  "math500": "math500_boxed",
  "svamp": "svamp",
  "gsm_hard": "gsm_hard",
  "aqua": "aqua",
}


def of(experiment: schema.Experiment) -> Protocol:
  """The protocol that the config names, or that of its task.

  Raises:
    ConfigError: no such protocol, or the task has none and the config does not say where the answer stands.
  """
  cfg, task = experiment.evaluate, experiment.data.task
  if cfg.protocol:
    if cfg.protocol not in PROTOCOLS:
      raise ConfigError(
        f"config.evaluate.protocol is {cfg.protocol!r}; expected one of {', '.join(PROTOCOLS)}"
      )
    return PROTOCOLS[cfg.protocol]
  if cfg.answer != "task":
    return Protocol(f"{task}_{cfg.answer}", task, cfg.answer)
  if task not in _OF_TASK:
    modes = ", ".join(typing.get_args(fields.hints(schema.Evaluate)["answer"])[1:])
    raise ConfigError(
      f"task {task!r} has no answer mode of its own; set config.evaluate.answer to where "
      f"the final answers of {task} stand: {modes}"
    )
  return PROTOCOLS[_OF_TASK[task]]
