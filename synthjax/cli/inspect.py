"""config, plan, init, bench: what a config says, what it costs, a first one, and how fast it is."""

import argparse
import os

from synthjax.cli import common

BENCHMARKS = (
  "train",
  "data",
  "verify",
  "logprob",
  "attention",
  "preference_step",
  "sample",
  "values",
  "pits",
  "coverage",
)


def add_verbs(verbs: common.Verbs) -> None:
  """Adds the family's verbs."""
  _add_config(verbs)
  _add_plan(verbs)
  _add_init(verbs)
  _add_bench(verbs)


def _add_config(verbs: common.Verbs) -> None:
  text = "print the resolved config, or explain the fields of all configs"
  parser = common.add_verb(verbs, "config", show_config, text, config_required=False)
  parser.add_argument(
    "--explain",
    nargs="?",
    const="",
    metavar="KEY",
    help="print comment, type, range and default of every field, or of those at and below KEY",
  )


def show_config(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Prints a config, or what its fields mean."""
  from synthjax import config
  from synthjax.config import explain
  from synthjax.errors import ConfigError

  if parsed.explain is not None:
    print(explain.describe(parsed.explain))
    return 0
  if not parsed.config:
    raise ConfigError(
      "config needs --config FILE.py, or --explain to see the fields of all configs"
    )
  print(config.describe(common.load_experiment(parsed, overrides)))
  return 0


def _add_plan(verbs: common.Verbs) -> None:
  text = "parameters, memory and FLOPs of a config, without allocating anything"
  parser = common.add_verb(verbs, "plan", plan, text)
  parser.add_argument(
    "--devices",
    type=int,
    default=0,
    help="plan for this number of simulated devices instead of the machine's own",
  )


def plan(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Prints what a training needs."""
  if parsed.devices:
    # Before jax is imported: it reads both when it starts.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={parsed.devices}"
  experiment = common.load_experiment(parsed, overrides)
  from synthjax.train import plan as planned

  print(planned.describe(experiment, simulated=bool(parsed.devices)))
  return 0


def _add_init(verbs: common.Verbs) -> None:
  text = "write a short config to begin from, which runs as it is"
  parser = verbs.add_parser("init", help=text, description=text)
  parser.add_argument(
    "--from",
    dest="starter",
    required=True,
    choices=("sft", "pretrain", "study"),
    help="fine-tuning on problems, pre-training on text, or study A on problems",
  )
  parser.add_argument("file", metavar="FILE", help="a new file, such as my_sft.py")
  parser.set_defaults(verb=init)


def init(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Writes a first config."""
  from synthjax import starters

  starters.write(parsed.starter, parsed.file)
  print(
    f"{parsed.file}: written; it runs on a few examples as it is: synthjax run --config "
    f"{parsed.file} --workdir runs/my_{parsed.starter}\nPut the paths of your own data into it; "
    "docs/your_data.md says what rows look like."
  )
  return 0


def _add_bench(verbs: common.Verbs) -> None:
  parser = verbs.add_parser(
    "bench",
    help="measure speed and memory beside other tools",
    description=(
      "train: a training step of 10M parameters beside PyTorch (`make parity` installs it). "
      "data: packing and loading beside grain and seqio. "
      "verify: judging beside math-verify alone. "
      "logprob, attention: the kernels beside plain jax. "
      "preference_step: a preference step beside TRL, as JSON. "
      "sample: tokens a second beside Hugging Face. "
      "values: step values with and without shared prefixes. "
      "pits: schedules of rollouts. "
      "coverage: how often a study's intervals hold the truth."
    ),
  )
  parser.add_argument("benchmark", choices=BENCHMARKS)
  parser.add_argument("--seconds", type=float, default=60.0, help="about how long to measure")
  parser.set_defaults(verb=bench)


def bench(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Runs one benchmark, `run(seconds)` of its module."""
  if overrides:
    from synthjax.errors import ConfigError

    raise ConfigError(f"bench takes no --config overrides, found {overrides}")
  import importlib

  if parsed.benchmark in ("sample", "values"):
    common.simulate_devices()
  from synthjax import progress

  # Only figures are printed, some of them as JSON that another program reads.
  progress.quiet(True)
  importlib.import_module(f"synthjax.bench.{parsed.benchmark}").run(parsed.seconds)
  return 0
