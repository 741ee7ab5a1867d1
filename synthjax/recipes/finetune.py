"""Tokenizer, cache, training, evaluation before and after: the loop that both studies are made of."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax

from synthjax import files, schema, stages
from synthjax.data import cache, documents, tokenizers
from synthjax.evaluate import accuracy
from synthjax.model.transformer import Transformer, sized
from synthjax.train import checkpoint, loop


def run(experiment: schema.Experiment, workdir: files.Path, force: bool = False, say: Callable[[str], None] = print) -> dict:
  """Runs the whole experiment in `workdir`, skipping what is finished; returns and prints the table.

  Raises:
    DataError, ConfigError, MeshError, CheckpointError, TrainingStopped: see the rooms; running again goes on where it stopped.
  """
  workdir = pathlib.Path(workdir)
  files.write_json(workdir / "config.json", dataclasses.asdict(experiment))
  data, world = experiment.data, experiment.world
  tokenizer = _tokenizer(experiment, workdir, force, say)
  for split in ("train", "test"):
    stages.run(workdir / f"cache_{split}", [_plain(data), _plain(world), tokenizer.fingerprint, _sources(experiment, split)],
               functools.partial(_cache, experiment, tokenizer, split, say), force, say)
  train_inputs = [dataclasses.asdict(experiment.train), _plain(experiment.model), experiment.seed, data.row_length,
                  tokenizer.fingerprint, _manifest_key(workdir / "cache_train"), _manifest_key(workdir / "cache_test")]
  scores = {}
  if experiment.evaluate.before:
    scores["before"] = stages.run(workdir / "evaluate_before", [train_inputs, _plain(experiment.evaluate)],
                                  lambda folder: _evaluate(experiment, tokenizer, None, folder, say), force, say)
  trained = stages.run(workdir / "train", train_inputs, lambda folder: dataclasses.asdict(loop.train(
    experiment, workdir / "cache_train/documents", folder, (tokenizer.size, tokenizer.fingerprint),
    workdir / "cache_test/documents", say)), force, say)
  scores["after"] = stages.run(workdir / "evaluate_after", [train_inputs, _plain(experiment.evaluate)],
                               lambda folder: _evaluate(experiment, tokenizer, workdir / "train/checkpoints", folder, say), force, say)
  result = {"train": trained, **scores}
  files.write_json(workdir / "results.json", result)
  say(table(experiment, result, workdir))
  return result


def table(experiment: schema.Experiment, result: dict, workdir: pathlib.Path) -> str:
  """What was measured and where it lies."""
  lines = ["", f"{experiment.name}: {experiment.data.task}, {result['after']['problems']:,} test problems",
           f"{'':8} {'accuracy':>16} {'undecided':>10} {'truncated':>10}"]
  for name in ("before", "after"):
    if score := result.get(name):
      shown = f"{100 * score['accuracy']:.1f} ± {100 * score['standard_error']:.1f} %"
      lines.append(f"{name:8} {shown:>16} {sum(score['undecided'].values()):>10} {score['truncated']:>10}")
  train = result["train"]
  lines.append(f"loss {train['loss']:.4f} after {train['steps']:,} steps; held-out loss {train['eval_loss']:.4f}")
  lines.append(f"everything is in {workdir}: results.json, train/checkpoints, train/metrics.jsonl, evaluate_after/responses.jsonl")
  return "\n".join(lines)


def _tokenizer(experiment, workdir, force, say) -> tokenizers.Tokenizer:
  """The config's tokenizer, trained on the training documents where it asks for that."""
  cfg = experiment.data.tokenizer
  if cfg.kind == "sentencepiece" and not cfg.path:
    path = workdir / "tokenizer/model.model"

    def train(folder):
      del folder
      texts = [e.inputs + e.targets for e in documents.examples(experiment.data, experiment.world, "train")]
      tokenizers.train_sentencepiece(texts, path, cfg.vocab_size)
      return {"documents": len(texts), "size": cfg.vocab_size}

    stages.run(path.parent, [_plain(experiment.data), _plain(experiment.world), _sources(experiment, "train")], train, force, say)
    cfg = dataclasses.replace(cfg, path=str(path))
  return tokenizers.load(cfg, experiment.world)


def _evaluate(experiment, tokenizer, checkpoints, folder, say) -> dict:
  """Accuracy of the trained policy, or of the one that training starts from (its init, or random parameters)."""
  model = Transformer(sized(experiment.model, tokenizer.size))
  source = checkpoints or experiment.train.init
  if source:
    _, params, _ = checkpoint.load_params(source, model.abstract())
  else:
    params = jax.jit(model.init)(jax.random.key(experiment.seed))
  examples = documents.examples(experiment.data, experiment.world, "test")
  score = accuracy.evaluate(model, params, tokenizer, examples, experiment, folder / "responses.jsonl")
  say(f"[{folder.name}] {score.describe()} of {score.problems:,} problems")
  return score.to_json()


def _sources(experiment, split) -> str:
  """Hash of the file that the split is read from; the world has none."""
  if experiment.data.task == "world":
    return ""
  path = documents.data_folder(experiment.data) / experiment.data.task / f"{split}.jsonl"
  return files.file_hash(path) if path.is_file() else "missing"


def _manifest_key(folder) -> str:
  return files.read_json(folder / "manifest.json")["inputs"]


def _cache(experiment, tokenizer, split, say, folder) -> dict:
  return cache.cache(experiment.data, experiment.world, tokenizer, split, folder / "documents", say=say)


def _plain(cfg) -> dict:
  return dataclasses.asdict(cfg)
