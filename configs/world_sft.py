"""Fine-tuning on the embedded world: the base policy learns its problems from a teacher's traces.

Command:   python -m synthjax run --config configs/world_sft.py --workdir runs/world_sft
Hardware:  2 CPU cores.
Expected:  351 steps in 2 min 29 s with the installation; 62.9 ± 1.5 % of 1,000 test problems
           before, 92.6 ± 0.8 % after (docs/log.md, 2026-11-21, measured on the base policy of that
           day).
Source:    the embedded world is ours (synthjax/worlds/shop.py); nothing is downloaded.
"""

import ml_collections

from synthjax import shipped

BASE = shipped.folder("base_policy")  # made by configs/world_base.py
VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: seconds instead of minutes."""
  config = ml_collections.ConfigDict(
    {
      "name": "world_sft",
      "model": "world_160k",
      "data": {"task": "world", "train_problems": 8192, "test_problems": 1000},
      "train": {
        "batch_size": 64,
        "init": str(BASE),
        "steps": 0,
        "epochs": 10.0,
        "optimizer": {"learning_rate": 1e-3},
        "checkpoint_every": 200,
      },
      "evaluate": {"max_new_tokens": 32},
    }
  )
  if variant == "smoke":
    config.data.train_problems = 200
    config.data.test_problems = 50
    config.train.steps = 20
    config.train.checkpoint_every = 10
  return config
