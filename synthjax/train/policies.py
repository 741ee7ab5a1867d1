"""Trains a policy on cached documents, on documents in memory, or on trees of traces.

Each function works out the order of the sequences and the number of steps, builds the trainer and
runs the one loop.
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from synthjax import files, progress
from synthjax.config import schema
from synthjax.data import loader, trees
from synthjax.data.documents import CachedDocuments, TokenDocuments
from synthjax.data.tokenizers import TokenizerInfo
from synthjax.train import build, loop, resume
from synthjax.train.training import Earlier, Result, Training


def on_caches(
  experiment: schema.Experiment,
  caches: Mapping[pathlib.Path, float],
  folder: files.Path,
  tokenizer: TokenizerInfo,
  held_out: files.Path | None = None,
  earlier: Sequence[Earlier] = (),
  say: Callable[[str], None] = progress.say,
) -> Result:
  """Trains by cross-entropy on cached documents; resumes from the newest checkpoint in `folder`.

  Args:
    experiment: the resolved config.
    caches: folders of the training documents with their rates; one alone is read epoch by epoch.
    folder: of this training: checkpoints and metrics.
    tokenizer: the one that the caches were made with.
    held_out: folder of documents for the held-out loss.
    earlier: trainings that this one may continue where its own folder has no checkpoint.
    say: prints a line.

  Raises:
    MeshError, CheckpointError, DataError: before anything is compiled.
    ValueError, TrainingStopped, stopping.Stopped: see `loop.run`.
  """
  sequences, steps = _cached_sequences(experiment, caches, tokenizer, say)
  training = Training(
    experiment=experiment,
    tokenizer=tokenizer,
    sequences=sequences,
    steps=steps,
    folder=pathlib.Path(folder),
    held_out=held_out,
    trunk=resume.longest_trunk(experiment, steps, earlier),
    say=say,
  )
  return loop.run(build.build_trainer(experiment, tokenizer.size, steps), training)


def on_documents(
  experiment: schema.Experiment,
  documents: TokenDocuments,
  folder: files.Path,
  tokenizer: TokenizerInfo,
) -> Result:
  """Trains `experiment.train.init` by cross-entropy over the responses; see `loop.run`.

  Args:
    experiment: the resolved config.
    documents: none longer than `data.seq_len`.
    folder: of this training: checkpoints and metrics.
    tokenizer: of the policy.
  """
  cfg = experiment.train
  sequences = loader.PackedDocuments(documents, experiment.data.seq_len, experiment.seed)
  steps = cfg.steps or math.ceil(sequences.count(cfg.epochs) / cfg.batch_size)
  training = Training(experiment, tokenizer, sequences, steps, folder=pathlib.Path(folder))
  return loop.run(build.build_trainer(experiment, tokenizer.size, steps), training)


def on_trees(
  experiment: schema.Experiment,
  plan: trees.TreePlan,
  reference: Sequence[np.ndarray],
  folder: files.Path,
  tokenizer: TokenizerInfo,
  earlier: Sequence[Earlier] = (),
) -> Result:
  """Trains `experiment.train.init` by `experiment.objective` over packed trees.

  Args:
    experiment: the resolved config.
    plan: the trees of every packed sequence.
    reference: the reference's log-prob sums, from `preference.reference_sums`.
    folder: of this training: checkpoints and metrics.
    tokenizer: of the policy.
    earlier: trainings that this one may continue, see `on_caches`.
  """
  cfg = experiment.train
  steps = cfg.steps or max(1, round(cfg.epochs * len(plan.rows) / cfg.batch_size))
  trainer = build.build_preference_trainer(experiment, tokenizer.size, steps, plan.rows)
  training = Training(
    experiment=experiment,
    tokenizer=tokenizer,
    sequences=trees.PackedTrees(plan.rows, reference, trainer.limits, experiment.seed, plan.fill),
    steps=steps,
    folder=pathlib.Path(folder),
    trunk=resume.longest_trunk(experiment, steps, earlier),
  )
  return loop.run(trainer, training)


def _cached_sequences(
  experiment: schema.Experiment,
  caches: Mapping[pathlib.Path, float],
  tokenizer: TokenizerInfo,
  say: Callable[[str], None],
) -> tuple[loader.PackedDocuments | loader.Mixture, int]:
  """(the global order of the training sequences, number of steps)."""
  cfg = experiment.train
  parts = []
  for number, folder in enumerate(caches):
    documents = CachedDocuments(folder)
    resume.check_tokenizer(documents.counts["tokenizer"], tokenizer.fingerprint, str(folder))
    # A seed of its own, so that alike caches are not read in the same order.
    parts.append(
      loader.PackedDocuments(documents, experiment.data.seq_len, experiment.seed + number)
    )
  if len(parts) == 1:
    return parts[0], cfg.steps or math.ceil(parts[0].count(cfg.epochs) / cfg.batch_size)
  count = cfg.steps * cfg.batch_size
  mixture = loader.Mixture(parts, list(caches.values()), count)
  for folder, share, part in zip(caches, mixture.token_shares(count), parts):
    epochs = share * mixture.fill / part.fill * cfg.steps * cfg.batch_size / part.count(1)
    say(f"{pathlib.Path(folder).name}: {100 * share:.2f} % of the tokens, {epochs:.2f} epochs")
  return mixture, cfg.steps
