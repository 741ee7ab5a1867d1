"""verify, decontaminate: files of traces and problems are checked, without a config."""

import argparse

from synthjax.cli import common


def add_verbs(verbs: common.Verbs) -> None:
  """Adds the family's verbs."""
  _add_verify(verbs)
  _add_decontaminate(verbs)


def _add_verify(verbs: common.Verbs) -> None:
  text = "judge a file of traces, and build the sets of correct and incorrect ones"
  parser = verbs.add_parser("verify", help=text, description=text)
  parser.add_argument(
    "--traces", required=True, help="JSONL of {problem_id, text}, optionally gold"
  )
  parser.add_argument(
    "--problems",
    default="",
    help="JSONL of {id, question, answer}, needed where the traces hold no gold",
  )
  parser.add_argument(
    "--mode",
    required=True,
    help="where the final answer stands: boxed, hash, math_order, ...; see docs/verify.md",
  )
  parser.add_argument(
    "--policy", default="strict", choices=("strict", "lm_eval"), help="what counts as equal"
  )
  parser.add_argument("--out", required=True, help="folder for verdicts, sets and report")
  parser.set_defaults(verb=verify)


def verify(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Writes a verdict for every trace, and the sets."""
  from synthjax.verify import label

  label.label(parsed.traces, parsed.out, parsed.mode, parsed.problems, parsed.policy)
  return 0


def _add_decontaminate(verbs: common.Verbs) -> None:
  text = "remove problems of evaluation sets from a file of training problems"
  parser = verbs.add_parser("decontaminate", help=text, description=text)
  parser.add_argument("--candidates", required=True, help="JSONL of training problems")
  parser.add_argument("--field", default="question", help="which of its fields holds the problem")
  parser.add_argument(
    "--against", required=True, nargs="+", help="JSONL files of evaluation problems"
  )
  parser.add_argument("--out", required=True, help="folder for clean.jsonl and report.json")
  parser.set_defaults(verb=decontaminate)


def decontaminate(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Writes the training problems that no evaluation set contains."""
  from synthjax.verify import decontaminate as rules

  report = rules.clean_file(parsed.candidates, parsed.against, parsed.field, parsed.out)
  removed = ", ".join(f"{rule} {n}" for rule, n in report["removed"].items())
  print(
    f"{report['candidates']:,} problems, {report['clean']:,} clean; removed: {removed}; kept, "
    "though they differ from an evaluation problem in their numbers alone: "
    f"{report['template_overlap']}\n  in {parsed.out}: clean.jsonl, report.json"
  )
  return 0
