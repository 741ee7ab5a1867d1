"""Evaluation protocols by name: which problems are asked, with which prompt, and where the answer
stands. A score means nothing without them.
"""

import dataclasses
import typing

from synthjax import files, shipped
from synthjax.config import fields, schema
from synthjax.data.formats import Example
from synthjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A task asked in one way.

  Attributes:
    name: by which the config names it.
    task: see data/formats.py.
    mode: where the final answer stands, see verify/extract.py.
    shots: file of worked examples below data/prompts; "" is the prompt of fine-tuning.
    template: of a problem and of its worked examples, with {question}.
    stop: texts that end a response, besides end-of-text.
  """

  name: str
  task: schema.TASK
  mode: str
  shots: str = ""
  template: str = ""
  stop: tuple[str, ...] = ()

  def prompt(self, example: Example) -> str:
    """The text that the policy continues."""
    if not self.template:
      return example.inputs
    return self.preamble() + self.template.format(question=example.question)

  def preamble(self) -> str:
    """The worked examples; "" where there are none."""
    if not self.shots:
      return ""
    rows = files.read_jsonl(shipped.folder("prompts") / f"{self.shots}.jsonl")
    text = ""
    for row in rows:
      text += f"{self.template.format(question=row['question'])} {row['solution']}\n\n"
    return text

  def record(self) -> dict:
    """JSON that stands beside a score: the prompt's text and hash, and how answers are found."""
    text = self.preamble() + (self.template or "(as in fine-tuning)")
    return {
      "protocol": self.name,
      "task": self.task,
      "prompt": text,
      "prompt_hash": files.value_hash(text),
      "extractor": self.mode,
      "stop": list(self.stop),
    }


def _wei(name: str, mode: str) -> Protocol:
  """GSM8K after eight worked examples of Wei et al. 2022 (arXiv 2201.11903)."""
  return Protocol(
    name=name,
    task="gsm8k",
    mode=mode,
    shots="gsm8k_wei8",
    template="Q: {question}\nA:",
    stop=("\nQ:", "\n\n"),
  )


_ALL = (
  _wei("gsm8k_strict", "answer_is"),
  # The last number, whatever stands before it.
  _wei("gsm8k_flexible", "last_number"),
  Protocol("gsm8k_strict_0", "gsm8k", "hash"),
  Protocol("gsm8k_flexible_0", "gsm8k", "last_number"),
  # The first of the task's usual modes that finds an answer, for models that were told no form.
  Protocol("gsm8k_any_0", "gsm8k", "gsm8k_order"),
  Protocol("math_any", "math", "math_order"),
  Protocol("math_boxed", "math", "boxed"),
  # Four worked examples of Lewkowycz et al. 2022 (arXiv 2206.14858).
  Protocol(
    name="math_minerva4",
    task="math",
    mode="minerva",
    shots="math_minerva4",
    template="Problem:\n{question}\n\nSolution:\n",
    stop=("Problem:", "I hope it is correct."),
  ),
  Protocol("math500_boxed", "math500", "boxed"),
  Protocol("svamp", "svamp", "hash"),
  Protocol("gsm_hard", "gsm_hard", "hash"),
  Protocol("aqua", "aqua", "hash"),
  Protocol("world", "world", "final_line"),
)
PROTOCOLS = {protocol.name: protocol for protocol in _ALL}
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
  """The protocol that the config names, else that of its task.

  Raises:
    ConfigError: no such protocol; or the task has none, and the config does not say where the
      answer stands.
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
