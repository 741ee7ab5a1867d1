"""Fine-tuning on the embedded world: the base policy learns the embedded world's problems from a teacher's traces.

Command:   python -m synthjax run --config configs/world_sft.py --workdir runs/world_sft
Hardware:  2 CPU cores.
Source:    the embedded world is ours (synthjax/worlds/shop.py); nothing is downloaded.
"""

import ml_collections

from synthjax import shipped

BASE = shipped.folder("base_policy")  # made by configs/world_base.py
VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: seconds instead of minutes."""
  smoke = variant == "smoke"
  return ml_collections.ConfigDict(
    {
      "name": "world_sft",
      "model": "world_160k",
      "data": {
        "task": "world",
        "train_problems": 200 if smoke else 8192,
        "test_problems": 50 if smoke else 1000,
      },
      "train": {
        "batch_size": 64,
        "init": str(BASE),
        "steps": 20 if smoke else 0,
        "epochs": 10.0,
        "optimizer": {"learning_rate": 1e-3},
        "checkpoint_every": 10 if smoke else 200,
      },
      "evaluate": {"max_new_tokens": 32},
    }
  )
