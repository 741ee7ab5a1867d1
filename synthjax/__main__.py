"""One command per verb: `python -m synthjax VERB --config configs/x.py[:smoke] [--config.key=value ...]`.

Heavy imports stay inside the verbs, so that `--help` answers at once.
"""

import argparse
import os
import sys


def main(arguments: list[str] | None = None) -> int:
  """Runs a verb. Returns the exit code: 0, 1 for a run that failed with a known error, 2 for a wrong command line."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  overrides = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
  parsed = _parser().parse_args([a for a in arguments if not a.startswith("--config.")])
  from synthjax import files

  try:
    return parsed.verb(parsed, overrides)
  except (ValueError, files.DataError) as e:
    print(f"synthjax: {e}", file=sys.stderr)
    return 1
  except RuntimeError as e:
    if type(e).__module__.partition(".")[0] != "synthjax":
      raise
    print(f"synthjax: {e}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="synthjax", description="Measures what synthetic data is worth.",
                                   epilog="Any field of a config can be set: --config.train.steps=100")
  verbs = parser.add_subparsers(required=True, metavar="VERB")

  def verb(name, function, text):
    added = verbs.add_parser(name, help=text, description=text)
    added.add_argument("--config", required=True, help="configs/FILE.py, or configs/FILE.py:smoke for its small variant")
    added.set_defaults(verb=function)
    return added

  def work(name, function, text):
    added = verb(name, function, text)
    added.add_argument("--workdir", default="", help="folder for everything that is written (default: runs/NAME)")
    added.add_argument("--force", action="store_true", help="redo finished stages; what they held is kept as NAME.previous")
    return added

  work("run", _run, "run a recipe's stages in order; finished ones are skipped")
  work("cache", _cache, "tokenise the config's data into ArrayRecord").add_argument(
    "--runner", default="", help="a Beam runner, such as DataflowRunner or FlinkRunner (default: in this process)")
  work("train", _train, "cache what is not cached, and train")
  work("evaluate", _evaluate, "answer the test problems with the trained policy")
  work("export", _export, "write the parameters alone of the trained policy").add_argument("--to", required=True, help="a new folder")
  verb("config", _config, "print the resolved config")
  verb("plan", _plan, "parameters, memory and FLOPs of a config, without allocating anything").add_argument(
    "--devices", type=int, default=0, help="plan for that many simulated devices instead of those that are here")
  bench = verbs.add_parser("bench", help="measure speed and memory beside other tools", description=_bench.__doc__)
  bench.add_argument("what", choices=("train", "data"))
  bench.add_argument("--seconds", type=float, default=60.0, help="about how long to measure")
  bench.set_defaults(verb=_bench)
  return parser


def _experiment(parsed, overrides):
  from synthjax import config

  return config.load(parsed.config, overrides)


def _job(parsed, overrides):
  """The experiment in its folder, with all processes connected."""
  import pathlib

  experiment = _experiment(parsed, overrides)
  from synthjax import multihost, progress
  from synthjax.recipes import finetune

  multihost.start(multihost.from_environment())
  progress.quiet(not multihost.is_first())
  return finetune.Job(experiment, pathlib.Path(parsed.workdir or f"runs/{experiment.name}"), parsed.force, getattr(parsed, "runner", ""))


def _run(parsed, overrides) -> int:
  job = _job(parsed, overrides)
  from synthjax import recipes

  recipes.RECIPES[job.experiment.recipe](job)
  return 0


def _cache(parsed, overrides) -> int:
  job = _job(parsed, overrides)
  from synthjax.recipes import finetune

  finetune.prepare(job)
  return 0


def _train(parsed, overrides) -> int:
  job = _job(parsed, overrides)
  from synthjax.recipes import finetune

  finetune.train(job, *finetune.prepare(job))
  return 0


def _evaluate(parsed, overrides) -> int:
  job = _job(parsed, overrides)
  from synthjax.recipes import finetune

  finetune.evaluate(job, finetune.prepare(job)[0], "after")
  return 0


def _export(parsed, overrides) -> int:
  job = _job(parsed, overrides)
  from synthjax.model.transformer import Transformer, sized
  from synthjax.recipes import finetune
  from synthjax.train import checkpoint

  tokenizer = finetune.prepare(job)[0]
  model = Transformer(sized(job.experiment.model, tokenizer.size))
  step = checkpoint.export_params(job.workdir / "train/checkpoints", parsed.to, model.abstract())
  print(f"{parsed.to}: the parameters after step {step:,}")
  return 0


def _config(parsed, overrides) -> int:
  from synthjax import config

  print(config.describe(_experiment(parsed, overrides)))
  return 0


def _plan(parsed, overrides) -> int:
  if parsed.devices:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={parsed.devices}"
  experiment = _experiment(parsed, overrides)
  from synthjax.train import plan

  print(plan.describe(experiment))
  return 0


def _bench(parsed, overrides) -> int:
  """`train`: a step of 10M parameters beside PyTorch (make parity installs it). `data`: packing and loading beside grain and seqio."""
  if overrides:
    raise ValueError(f"bench takes no --config overrides, found {overrides}")
  import importlib

  importlib.import_module(f"synthjax.bench.{parsed.what}").run(parsed.seconds)
  return 0


if __name__ == "__main__":
  sys.exit(main())
