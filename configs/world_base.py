"""The base policy of study A: what a pretrained model is to the embedded world. Shipped as data/base_policy.

It has read clean solutions, one operation a line, of problems with the four most frequent verbs of each sign; teacher traces fuse
operations and use twelve. Its one-step arithmetic is near 100 %, which everything else stands on.

Command:   python -m synthjax run --config configs/world_base.py --workdir runs/world_base
           python -m synthjax export --config configs/world_base.py --workdir runs/world_base --to data/base_policy
Hardware:  2 CPU cores.
Source:    the embedded world is ours; sizes and steps are our choice.
"""

import ml_collections

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: seconds instead of minutes."""
  smoke = variant == "smoke"
  return ml_collections.ConfigDict({
    "name": "world_base",
    "model": "world_160k",
    "world": {"verbs": 4},
    "data": {"task": "world", "traces": "base", "train_problems": 200 if smoke else 50_000, "test_problems": 50 if smoke else 1000},
    "train": {
      "batch_size": 64,
      "steps": 20 if smoke else 0,
      "epochs": 6.0,
      "optimizer": {"learning_rate": 3e-3, "schedule": "wsd", "final": 0.0},
      "checkpoint_every": 10 if smoke else 200,
    },
    "evaluate": {"max_new_tokens": 40, "before": False},
  })
