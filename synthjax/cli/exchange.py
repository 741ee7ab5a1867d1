"""import: a model of Hugging Face's format becomes a checkpoint that `train.init` can name."""

import argparse

from synthjax.cli import common


def add_verbs(verbs: common.Verbs) -> None:
  """Adds the family's verbs."""
  text = "import a Hugging Face folder: parameters for train.init, model shape, tokenizer"
  parser = verbs.add_parser("import", help=text, description=text)
  parser.add_argument(
    "--from",
    dest="source",
    required=True,
    metavar="FOLDER",
    help="folder with config.json, safetensors and tokenizer.json",
  )
  parser.add_argument("--to", required=True, help="a new folder")
  parser.add_argument(
    "--eos", default="", help="end-of-text token, where tokenizer_config.json names none"
  )
  parser.set_defaults(verb=import_model)


def import_model(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Imports a model and prints the settings of a config that uses it."""
  del overrides  # no config is read
  from synthjax import locks
  from synthjax.train import imported

  with locks.lock_beside(parsed.to, "synthjax import", "wait for it, or give another --to"):
    settings = imported.import_folder(parsed.source, parsed.to, parsed.eos)
  print(f"{parsed.to}: imported from {parsed.source}; a config uses it by")
  for setting in settings:
    print(f"  --config.{setting}")
  return 0
