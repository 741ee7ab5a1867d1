"""The base policies of study A: what a pretrained model is to the embedded world. Shipped in data/.

A base policy has read clean solutions, one operation a line, of problems with the few most frequent
verbs of each sign. It computes single steps almost without error, which everything else stands on,
and does not know the other verbs.

Command:   python -m synthjax run --config configs/world_base.py --workdir runs/world_base
           python -m synthjax export --config configs/world_base.py --workdir runs/world_base \\
             --to data/base_policy
           the same with configs/world_base.py:facts for data/facts_policy, the base of the main
           study, and with configs/world_base.py:luck, which goes on from it, for data/luck_policy
Hardware:  2 CPU cores; 10 minutes each (luck: 7 minutes, beside other work).
Expected:  100.0 ± 0.0 % of 1,000 test problems, every step correct (measured with 5 epochs, 6.5
           minutes beside another training; docs/log.md, 2026-11-21). `facts`: 2,274 steps, loss
           0.0000, about 17 minutes at load 15 (2026-11-24).
Source:    the embedded world is ours; sizes and steps are our choice.
"""

import dataclasses

import ml_collections

from synthjax import shipped
from synthjax.worlds import shop

VARIANTS = ("smoke", "facts", "facts_smoke", "luck", "luck_smoke")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`facts`: of the main world; `luck`: of the one with recounts; `..smoke`: seconds."""
  config = ml_collections.ConfigDict(
    {
      "name": "world_base",
      "model": "world_160k",
      "world": {"verbs": 4},
      "data": {
        "task": "world",
        "traces": "base",
        "train_problems": 50_000,
        "test_problems": 1000,
      },
      "train": {
        "batch_size": 64,
        "epochs": 6.0,
        "optimizer": {"learning_rate": 3e-3, "schedule": "wsd", "final": 0.0},
        "checkpoint_every": 200,
      },
      "evaluate": {"max_new_tokens": 40, "before": False},
    }
  )
  if variant.startswith("facts"):
    config.world = ml_collections.ConfigDict(dataclasses.asdict(shop.FACTS))
    config.train.epochs = 8.0
  if variant.startswith("luck"):
    config.world = ml_collections.ConfigDict(dataclasses.asdict(shop.LUCK))
    config.data.train_problems = 20_000
    config.data.seq_len = 150  # two problems
    config.data.test_problems = 300
    config.train.init = str(shipped.folder("facts_policy"))  # it knows the words and the sums
    config.train.batch_size = 32
    config.train.epochs = 2.0
    config.train.optimizer.learning_rate = 1e-3
    config.evaluate.max_new_tokens = 64
  if variant.endswith("smoke"):
    config.data.train_problems = 200
    config.data.test_problems = 50
    config.train.steps = 20
    config.train.checkpoint_every = 10
  return config
