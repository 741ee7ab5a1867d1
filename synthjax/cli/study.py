"""values, report, compare: what a study found, and what one would find."""

import argparse

from synthjax.cli import common


def add_verbs(verbs: common.Verbs) -> None:
  """Adds the family's verbs."""
  _add_values(verbs)
  _add_report(verbs)
  _add_compare(verbs)


def _add_values(verbs: common.Verbs) -> None:
  text = "predict from a small sample of a policy's traces and rollouts which arm will pay off"
  parser = common.add_job_verb(verbs, "values", values, text)
  parser.add_argument(
    "--diagnose",
    action="store_true",
    required=True,
    help="place the policy's problems in the phase diagram",
  )
  parser.add_argument("--problems", type=int, default=100, help="number of problems sampled")
  parser.add_argument("--traces", type=int, default=8, help="traces sampled a problem")
  parser.add_argument(
    "--rollouts",
    type=int,
    default=8,
    help="rollouts from every prefix of up to three traces a problem",
  )
  common.add_checkpoint(parser, default="train.init")
  common.add_arm(parser)


def values(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Places a policy's problems in the phase diagram."""
  common.simulate_devices()
  job = common.open_job(parsed, overrides)
  from synthjax.recipes import diagnose

  size = diagnose.SampleCounts(
    problems=parsed.problems, traces=parsed.traces, rollouts=parsed.rollouts
  )
  diagnose.run(job, parsed.arm, parsed.checkpoint, size)
  return 0


def _add_report(verbs: common.Verbs) -> None:
  text = (
    "count spurious and incorrect steps of a finished study A on the embedded world, "
    "and their advantages"
  )
  parser = common.add_verb(verbs, "report", report, text)
  parser.add_argument(
    "--workdir",
    required=True,
    help="folder of a run of recipe math_rl; unfinished stages are left out",
  )


def report(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Writes the counts of spurious steps."""
  experiment = common.load_experiment(parsed, overrides)
  from synthjax import locks
  from synthjax.math_study import spurious

  with locks.folder_lock(parsed.workdir, "synthjax report"):
    spurious.report(experiment, parsed.workdir)
  return 0


def _add_compare(verbs: common.Verbs) -> None:
  text = "paired difference in accuracy between two files responses.jsonl"
  parser = verbs.add_parser("compare", help=text, description=text)
  parser.add_argument("one")
  parser.add_argument("other")
  parser.set_defaults(verb=compare)


def compare(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Prints how much more `one` answers correctly than `other`, in points."""
  from synthjax.evaluate import score

  found = score.compare(parsed.one, parsed.other)
  low, high = found["interval"]
  print(
    f"{100 * found['difference']:+.2f} ± {100 * found['standard_error']:.2f} points, "
    f"95 % interval {100 * low:+.2f} to {100 * high:+.2f}, over {found['problems']:,} problems "
    f"that both have ({found['left_out']} left out)"
  )
  return 0
