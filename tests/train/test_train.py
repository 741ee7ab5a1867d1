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
from synthjax.data import packing
from synthjax.kernels import linear_logprob as kernel
from synthjax.model.transformer import Transformer
from synthjax.recipes import finetune
from synthjax.sharding import MeshError, check_fit, make_layout
from synthjax.train import loop, optimizer
from synthjax.train.step import Trainer

ROOT = pathlib.Path(__file__).parents[2]
TINY = schema.Model(
  d_model=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=64, vocab_size=64, mlp="relu"
)


def _rows(rows=8, length=32):
  random = np.random.default_rng(0)
  make = lambda n: np.concatenate([[n // 3], random.integers(0, 64, n)]).astype(np.int32)
  return packing.layout([[make(14), make(11)] for _ in range(rows)], length)


def _trainer(mesh, accumulate=1):
  cfg = schema.Train(batch_size=8, accumulate=accumulate)
  layout = make_layout(mesh, jax.devices()[: int(np.prod(dataclasses.astuple(mesh)))])
  return Trainer(
    Transformer(TINY, layout.constrain), optimizer.make(cfg.optimizer, 10), layout, cfg
  )


def _gradient(trainer):
  state = trainer.init(jax.random.key(0))
  batch = trainer.layout.put(_rows(), 8)
  gradients = jax.jit(trainer.gradients)
  return jax.device_get(gradients(state["params"], batch, jnp.float32(_rows()["weights"].sum())))


@pytest.mark.parametrize(
  ("mesh", "accumulate"),
  [
    (schema.Mesh(1, 4, 2, 1), 1),
    (schema.Mesh(2, 2, 1, 2), 1),
    (schema.Mesh(1, 1, 1, 1), 4),
    (schema.Mesh(1, 2, 1, 1), 2),
  ],
)
def test_sharding_and_accumulation_leave_loss_and_gradient_alone(mesh, accumulate):
  expected, expected_metrics = _gradient(_trainer(schema.Mesh(1, 1, 1, 1)))
  found, metrics = _gradient(_trainer(mesh, accumulate))
  assert metrics["loss"] == pytest.approx(expected_metrics["loss"], abs=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_a_mesh_that_does_not_divide_the_model_is_named_and_one_that_does_is_proposed():
  layout = make_layout(schema.Mesh(1, 1, 8, 1))
  with pytest.raises(
    MeshError,
    match=r"model.kv_heads=2 is not divisible by tensor=8.*fits: config.mesh.replica=1, config.mesh.fsdp=8",
  ):
    check_fit(layout, TINY, 8, 32)
  with pytest.raises(MeshError, match="does not fit 8 devices"):
    make_layout(schema.Mesh(3, 1, 1, 1))


def test_a_whole_run_compiles_its_step_once(tmp_path):
  experiment = config.load("configs/world_sft.py:smoke", ["train.log_every=1"])
  job = jobs.Job(experiment, tmp_path)
  tokenizer, caches = finetune.prepare(job)
  compiled, at_step = [], []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: "backend_compile" in name and compiled.append(name)
  )
  loop.train(
    experiment,
    caches,
    tmp_path / "train",
    (tokenizer.size, tokenizer.fingerprint),
    say=lambda line: line.startswith("step") and at_step.append(len(compiled)),
  )
  assert len(at_step) == 20 and at_step[0] >= 1
  assert at_step[-1] == at_step[0]


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_a_schedule_has_its_peak_after_the_warm_up_and_its_final_rate_at_the_last_step(
  schedule, steps
):
  cfg = schema.Optimizer(learning_rate=2.0, schedule=schedule, warmup=0.1, final=0.25)
  rates = np.asarray(optimizer.schedule(cfg, steps)(np.arange(steps)))
  assert rates.max() == rates[max(round(0.1 * steps) - 1, 0)] == pytest.approx(2.0)
  assert rates[-1] == pytest.approx(2.0 if schedule == "constant" else 0.5)
  assert np.all(np.diff(rates[round(0.1 * steps) :]) <= 1e-6)


def _losses(folder):
  rows = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
  return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_more_steps_go_on_from_where_the_schedules_part_to_the_bits_of_a_run_of_its_own(
  tmp_path, capsys
):
  def train(folder, *settings):
    common = [
      "train.optimizer.warmup=2.0",
      "train.optimizer.decay=3.0",
      "train.checkpoint_every=100",
      "train.log_every=1",
    ]
    experiment = config.load(str(ROOT / "configs/world_sft.py:smoke"), [*common, *settings])
    finetune.train(jobs.Job(experiment, tmp_path / folder))
    return _losses(tmp_path / folder)

  wsd = "train.optimizer.schedule=wsd"
  short = train("grown", wsd, "train.steps=8")
  grown = train("grown", wsd, "train.steps=12")
  assert "going on from step 5 of" in capsys.readouterr().out, (
    "the decay of the short one is not part of the long one"
  )
  alone = train("alone", wsd, "train.steps=12")
  assert grown == {step: alone[step] for step in range(6, 13)}
  assert [short[step] for step in range(1, 6)] == [alone[step] for step in range(1, 6)]
  # The state of step 5 goes on under any schedule where the config names it.
  trunk = f"train.continue_from={tmp_path / 'grown/train/checkpoints'}"
  other = train(
    "other", trunk, "train.continue_step=12", "train.optimizer.schedule=linear", "train.steps=14"
  )
  assert list(other) == [13, 14]


def test_a_training_without_a_gradient_is_an_error_and_stays_one(tmp_path):
  class Rows:
    """Rows without a target that counts."""

    fill = 1.0

    def read(self, indices):
      batch = _rows(len(indices))
      return {**batch, "weights": np.zeros_like(batch["weights"])}

  experiment = schema.Experiment(
    data=schema.Data(seq_len=32), model=TINY, train=schema.Train(batch_size=8)
  )
  for _ in range(2):
    with pytest.raises(
      loop.TrainingStopped, match="the gradient was 0 at each of 3 steps, so nothing was learned"
    ):
      loop.run(
        experiment,
        _trainer(schema.Mesh(1, 1, 1, 1)),
        Rows(),
        3,
        tmp_path / "train",
        (64, "a"),
        say=lambda _: None,
      )


def test_a_profile_begins_within_its_window_after_a_resume_and_ends_with_the_run(tmp_path):
  class Rows:
    fill = 1.0

    def read(self, indices):
      return _rows(len(indices))

  trainer = _trainer(schema.Mesh(1, 1, 1, 1))
  for steps in (2, 4):
    experiment = schema.Experiment(
      data=schema.Data(seq_len=32), model=TINY, train=schema.Train(batch_size=8, profile="2:9")
    )
    loop.run(experiment, trainer, Rows(), steps, tmp_path / "train", (64, "a"), say=lambda _: None)
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
def test_a_batch_that_makes_no_sense_is_named_by_row_and_value(name, value, message):
  batch, trainer = _rows(), _trainer(schema.Mesh(1, 1, 1, 1))
  trainer.check(batch)
  batch[name][2, 5] = value
  with pytest.raises(ValueError, match=message):
    trainer.check(batch)


def test_a_bad_batch_in_the_middle_of_a_training_stops_it_before_its_step(tmp_path):
  class Rows:
    """Good rows, but for row 18, of the third batch."""

    fill = 1.0

    def read(self, indices):
      batch = _rows(len(indices))
      batch["targets"][[i for i, index in enumerate(indices) if index == 18], 5] = 64
      return batch

  experiment, said = (
    schema.Experiment(
      data=schema.Data(seq_len=32), model=TINY, train=schema.Train(batch_size=8, log_every=1)
    ),
    [],
  )
  with pytest.raises(ValueError, match=r"targets\[2, 5\] is 64"):
    loop.run(
      experiment,
      _trainer(schema.Mesh(1, 1, 1, 1)),
      Rows(),
      4,
      tmp_path / "train",
      (64, "a"),
      say=said.append,
    )
  assert [line.split()[1] for line in said if line.startswith("step")] == ["1/4", "2/4"]


def test_no_array_over_tokens_and_vocabulary_is_in_the_training_programs():
  """Blocks of the vocabulary are; whole logits are not. Asserted on the program's text, for documents and for trees of rollouts."""
  from synthjax.data import trees
  from synthjax.train import preference

  model_cfg = dataclasses.replace(TINY, vocab_size=8192)
  cfg, layout = schema.Train(batch_size=8), make_layout(schema.Mesh(), jax.devices()[:1])
  pieces = (
    Transformer(model_cfg, layout.constrain),
    optimizer.make(cfg.optimizer, 10),
    layout,
    cfg,
  )
  rows = [[trees.pair([1, 2, 3], [[4] * 9], [[5] * 11])] for _ in range(8)]
  source = trees.TreeRows(rows, None, trees.bounds(rows, 8, 32), 0, 1.0)
  limits = source.limits
  for trainer, batch, positions in (
    (Trainer(*pieces), _rows(), (8 * 32,)),
    (
      preference.PreferenceTrainer(*pieces, schema.Objective(), limits.trees),
      source.read(list(range(8))),
      (8 * 32, limits.predictions),
    ),
  ):
    text = jax.jit(trainer.step).lower(trainer.abstract(), layout.put(batch, 8)).as_text()
    assert f"x{kernel.BLOCK}xf32>" in text, "the blocks are there"
    assert "8x32x8192x" not in text
    assert not any(f"<{n}x8192x" in text for n in positions)


def test_help_answers_within_two_seconds():
  start = time.monotonic()
  subprocess.run(
    [sys.executable, "-m", "synthjax", "--help"], cwd=ROOT, check=True, stdout=subprocess.PIPE
  )
  assert time.monotonic() - start < 2


def test_training_imports_no_tensorflow():
  code = "import sys, synthjax.train.loop, synthjax.evaluate.run; sys.exit('tensorflow' in sys.modules or 'seqio' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_config_error_is_one_readable_line():
  command = [
    sys.executable,
    "-m",
    "synthjax",
    "config",
    "--config",
    "configs/world_sft.py",
    "--config.train.stepz=1",
  ]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (
    run.returncode == 1
    and run.stderr.startswith("synthjax: config.train.stepz: unknown key")
    and run.stderr.count("\n") == 1
  )
  assert config.load(str(ROOT / "configs/world_sft.py")).name == "world_sft"
