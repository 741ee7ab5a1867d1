"""Training: the same loss over meshes and micro-batches, schedules, resuming, what is refused."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax import config
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.data import packing, tokenizers, trees
from synthjax.kernels import linear_logprob as kernel
from synthjax.model.transformer import Transformer
from synthjax.recipes import finetune
from synthjax.sharding import MeshError, check_fit, make_layout
from synthjax.train import loop, optimizer, policies
from synthjax.train.preference import PreferenceTrainer
from synthjax.train.step import Trainer
from synthjax.train.training import Training, TrainingStopped

ROOT = pathlib.Path(__file__).parents[2]
TINY = schema.Model(
  d_model=32,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp_dim=64,
  vocab_size=64,
  mlp="relu",
)
ONE_DEVICE = schema.Mesh(1, 1, 1, 1)


def _sequences(count=8, length=32):
  """Sequences of two documents each."""
  random = np.random.default_rng(0)

  def document(size):
    return np.concatenate([[size // 3], random.integers(0, 64, size)]).astype(np.int32)

  return packing.layout([[document(14), document(11)] for _ in range(count)], length)


class Endless:
  """The same sequences for ever."""

  fill = 1.0

  def read(self, indices):
    return _sequences(len(indices))


class WithoutTargets(Endless):
  """No target counts."""

  def read(self, indices):
    batch = _sequences(len(indices))
    return {**batch, "weights": np.zeros_like(batch["weights"])}


class BadInItsThirdBatch(Endless):
  """Good sequences, but for number 18."""

  def read(self, indices):
    batch = _sequences(len(indices))
    bad = [row for row, index in enumerate(indices) if index == 18]
    batch["targets"][bad, 5] = 64
    return batch


def _trainer(mesh, accumulate=1):
  cfg = schema.Train(batch_size=8, accumulate=accumulate)
  device_count = int(np.prod(dataclasses.astuple(mesh)))
  layout = make_layout(mesh, jax.devices()[:device_count])
  model = Transformer(TINY, layout.constrain)
  return Trainer(model, optimizer.make(cfg.optimizer, 10), layout, cfg)


def _training(folder, sequences, steps, say=lambda _: None, **train):
  experiment = schema.Experiment(
    data=schema.Data(seq_len=32),
    model=TINY,
    train=schema.Train(batch_size=8, **train),
  )
  tokenizer = tokenizers.TokenizerInfo(64, "a")
  return Training(experiment, tokenizer, sequences, steps, folder / "train", say=say)


def _gradient(trainer):
  state = trainer.init(jax.random.key(0))
  batch = trainer.layout.put(_sequences(), 8)
  weight = jnp.float32(_sequences()["weights"].sum())
  return jax.device_get(jax.jit(trainer.gradients)(state["params"], batch, weight))


@pytest.mark.parametrize(
  ("mesh", "accumulate"),
  [
    (schema.Mesh(1, 4, 2, 1), 1),
    (schema.Mesh(2, 2, 1, 2), 1),
    (ONE_DEVICE, 4),
    (schema.Mesh(1, 2, 1, 1), 2),
  ],
)
def test_sharding_and_accumulation_leave_loss_and_gradient_alone(mesh, accumulate):
  expected, expected_metrics = _gradient(_trainer(ONE_DEVICE))
  found, metrics = _gradient(_trainer(mesh, accumulate))
  assert metrics["loss"] == pytest.approx(expected_metrics["loss"], abs=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_a_mesh_that_does_not_divide_the_model_is_named_and_one_that_does_is_proposed():
  layout = make_layout(schema.Mesh(1, 1, 8, 1))
  message = (
    r"model.kv_heads=2 is not divisible by tensor=8"
    r".*fits: config.mesh.replica=1, config.mesh.fsdp=8"
  )
  with pytest.raises(MeshError, match=message):
    check_fit(layout, TINY, 8, 32)
  with pytest.raises(MeshError, match="does not fit 8 devices"):
    make_layout(schema.Mesh(3, 1, 1, 1))


def test_a_whole_run_compiles_its_step_once(tmp_path):
  experiment = config.load("configs/world_sft.py:smoke", ["train.log_every=1"])
  tokenizer, caches = finetune.prepare(jobs.Job(experiment, tmp_path))
  compiled, at_step = [], []

  def listen(name, *_, **__):
    if "backend_compile" in name:
      compiled.append(name)

  def say(line):
    if line.startswith("step"):
      at_step.append(len(compiled))

  jax.monitoring.register_event_duration_secs_listener(listen)
  folder, info = tmp_path / "train", tokenizers.info(tokenizer)
  policies.on_caches(experiment, caches, folder, info, say=say)
  assert len(at_step) == 20 and at_step[0] >= 1
  assert at_step[-1] == at_step[0]


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_a_schedule_has_its_peak_after_the_warm_up_and_its_final_rate_at_the_last_step(
  schedule, steps
):
  cfg = schema.Optimizer(learning_rate=2.0, schedule=schedule, warmup=0.1, final=0.25)
  rates = np.asarray(optimizer.schedule(cfg, steps)(np.arange(steps)))
  warmup = round(0.1 * steps)
  last = 2.0 if schedule == "constant" else 0.5
  assert rates.max() == rates[max(warmup - 1, 0)] == pytest.approx(2.0)
  assert rates[-1] == pytest.approx(last)
  assert np.all(np.diff(rates[warmup:]) <= 1e-6)


def _losses(folder):
  losses = {}
  for line in (folder / "train/metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    if "loss" in row:
      losses[row["step"]] = row["loss"]
  return losses


def _train_smoke(folder, *settings):
  common = [
    "train.optimizer.warmup=2.0",
    "train.optimizer.decay=3.0",
    "train.checkpoint_every=100",
    "train.log_every=1",
  ]
  experiment = config.load(str(ROOT / "configs/world_sft.py:smoke"), [*common, *settings])
  finetune.train(jobs.Job(experiment, folder))
  return _losses(folder)


def test_more_steps_go_on_from_where_the_schedules_part_to_the_bits_of_a_run_of_its_own(
  tmp_path, capsys
):
  wsd = "train.optimizer.schedule=wsd"
  short = _train_smoke(tmp_path / "grown", wsd, "train.steps=8")
  grown = _train_smoke(tmp_path / "grown", wsd, "train.steps=12")
  # The decay of the short training is not part of the long one.
  assert "going on from step 5 of" in capsys.readouterr().out
  alone = _train_smoke(tmp_path / "alone", wsd, "train.steps=12")
  assert grown == {step: alone[step] for step in range(6, 13)}
  assert [short[step] for step in range(1, 6)] == [alone[step] for step in range(1, 6)]
  # The state of step 5 goes on under any schedule where the config names it.
  other = _train_smoke(
    tmp_path / "other",
    f"train.continue_from={tmp_path / 'grown/train/checkpoints'}",
    "train.continue_step=12",
    "train.optimizer.schedule=linear",
    "train.steps=14",
  )
  assert list(other) == [13, 14]


def test_a_training_without_a_gradient_is_an_error_and_stays_one(tmp_path):
  message = "the gradient was 0 at each of 3 steps, so nothing was learned"
  for _ in range(2):
    with pytest.raises(TrainingStopped, match=message):
      loop.run(_trainer(ONE_DEVICE), _training(tmp_path, WithoutTargets(), 3))


def test_a_profile_begins_within_its_window_after_a_resume_and_ends_with_the_run(tmp_path):
  trainer = _trainer(ONE_DEVICE)
  for steps in (2, 4):
    loop.run(trainer, _training(tmp_path, Endless(), steps, profile="2:9"))
  assert list((tmp_path / "train/profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("tokens", 64, r"tokens\[2, 5\] is 64; expected 0 to 63"),
    ("targets", -1, r"targets\[2, 5\] is -1; expected 0 to 63"),
    ("until", 5, r"until\[2, 5\] is 5; expected more than its own index 5"),
    ("weights", -0.5, r"weights\[2, 5\] is -0.5; expected 0 or more"),
  ],
)
def test_a_batch_that_makes_no_sense_is_named_by_sequence_and_value(name, value, message):
  batch, trainer = _sequences(), _trainer(ONE_DEVICE)
  trainer.check(batch)
  batch[name][2, 5] = value
  with pytest.raises(ValueError, match=message):
    trainer.check(batch)


def test_a_bad_batch_in_the_middle_of_a_training_stops_it_before_its_step(tmp_path):
  said = []
  training = _training(tmp_path, BadInItsThirdBatch(), 4, said.append, log_every=1)
  with pytest.raises(ValueError, match=r"targets\[2, 5\] is 64"):
    loop.run(_trainer(ONE_DEVICE), training)
  steps = [line.split()[1] for line in said if line.startswith("step")]
  assert steps == ["1/4", "2/4"]


def _assert_without_logits(trainer, batch, positions):
  """Blocks of the vocabulary are in the program of the step; whole logits are not."""
  placed = trainer.layout.put(batch, 8)
  text = jax.jit(trainer.step).lower(trainer.abstract(), placed).as_text()
  assert f"x{kernel.BLOCK}xf32>" in text
  assert "8x32x8192x" not in text
  for count in positions:
    assert f"<{count}x8192x" not in text


def test_no_array_over_tokens_and_vocabulary_is_in_the_training_programs():
  """For documents and for trees of rollouts."""
  model_cfg = dataclasses.replace(TINY, vocab_size=8192)
  cfg = schema.Train(batch_size=8)
  layout = make_layout(schema.Mesh(), jax.devices()[:1])
  model = Transformer(model_cfg, layout.constrain)
  adamw = optimizer.make(cfg.optimizer, 10)
  _assert_without_logits(Trainer(model, adamw, layout, cfg), _sequences(), [8 * 32])

  rows = [[trees.pair([1, 2, 3], [[4] * 9], [[5] * 11])] for _ in range(8)]
  limits = trees.bounds(rows, 8, 32)
  batch = trees.PackedTrees(rows, None, limits, 0, 1.0).read(list(range(8)))
  trainer = PreferenceTrainer(model, adamw, layout, cfg, schema.Objective(), limits)
  _assert_without_logits(trainer, batch, [8 * 32, limits.predictions])


def test_help_answers_within_two_seconds():
  start = time.monotonic()
  subprocess.run(
    [sys.executable, "-m", "synthjax", "--help"], cwd=ROOT, check=True, stdout=subprocess.PIPE
  )
  assert time.monotonic() - start < 2


def test_training_imports_no_tensorflow():
  code = (
    "import sys, synthjax.train.policies, synthjax.evaluate.run; "
    "sys.exit('tensorflow' in sys.modules or 'seqio' in sys.modules)"
  )
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_config_error_is_one_readable_line():
  command = [sys.executable, "-m", "synthjax", "config", "--config", "configs/world_sft.py"]
  run = subprocess.run(
    [*command, "--config.train.stepz=1"], cwd=ROOT, capture_output=True, text=True
  )
  assert run.returncode == 1
  assert run.stderr.startswith("synthjax: config.train.stepz: unknown key")
  assert run.stderr.count("\n") == 1
  assert config.load(str(ROOT / "configs/world_sft.py")).name == "world_sft"
