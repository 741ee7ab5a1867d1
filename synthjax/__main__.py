"""One command per verb: `python -m synthjax VERB --config configs/x.py[:smoke] [--config.key=value ...]`.

Heavy imports stay inside the verbs, so that `--help` answers at once.
"""

import argparse
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

  def verb(name, function, text, workdir=True):
    added = verbs.add_parser(name, help=text, description=text)
    added.add_argument("--config", required=True, help="configs/FILE.py, or configs/FILE.py:smoke for its small variant")
    if workdir:
      added.add_argument("--workdir", default="", help="folder for everything that is written (default: runs/NAME)")
      added.add_argument("--force", action="store_true", help="redo finished stages")
    added.set_defaults(verb=function)

  verb("run", _run, "run a recipe's stages in order; finished ones are skipped")
  verb("config", _config, "print the resolved config", workdir=False)
  verb("plan", _plan, "parameters, memory and FLOPs of a config, without allocating anything", workdir=False)
  return parser


def _experiment(parsed, overrides):
  from synthjax import config

  return config.load(parsed.config, overrides)


def _run(parsed, overrides) -> int:
  experiment = _experiment(parsed, overrides)
  from synthjax import multihost, recipes

  multihost.start(multihost.from_environment())
  recipes.RECIPES[experiment.recipe](experiment, parsed.workdir or f"runs/{experiment.name}", parsed.force)
  return 0


def _config(parsed, overrides) -> int:
  from synthjax import config

  print(config.describe(_experiment(parsed, overrides)))
  return 0


def _plan(parsed, overrides) -> int:
  experiment = _experiment(parsed, overrides)
  from synthjax.train import plan

  print(plan.describe(experiment))
  return 0


if __name__ == "__main__":
  sys.exit(main())
