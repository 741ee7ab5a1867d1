"""Study A in minutes: what 512 synthetic problems of the embedded world are worth under SFT, RFT, DPO and per-step DPO.

Command:   make quickstart      (or: python -m synthjax run --config configs/quickstart.py --workdir runs/quickstart)
Hardware:  2 CPU cores: 8 minutes with the set-up, 11 minutes of CPU time.
Source:    Setlur et al. 2024 (arXiv 2406.14532); the world is ours (synthjax/generate/worlds/shop.py), sizes and rates were chosen on its
           development problems; nothing is downloaded. The full sweep is configs/math_scaling_world.py; RFT has 16 epochs here, not 8: its
           seeds then spread less (docs/log.md).
"""

import ml_collections

from synthjax import shipped

BASE = shipped.folder("base_policy")  # made by configs/world_base.py
VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: a minute, for tests of the loop."""
  smoke = variant == "smoke"
  rare = {"checkpoint_every": 10_000, "log_every": 10_000}
  return ml_collections.ConfigDict({
    "name": "quickstart",
    "recipe": "math_rl",
    "model": "world_160k",
    "data": {"task": "world", "test_problems": 50 if smoke else 1000},
    "train": {"batch_size": 8, "init": str(BASE), "epochs": 2.0 if smoke else 20.0, "optimizer": {"learning_rate": 1e-3}, **rare},
    "objective": {"preference": {"beta": 0.1, "nll": 1.0}},
    "study": {
      "problems": (24,) if smoke else (512,),
      "baseline_problems": (48,) if smoke else (2048, 4096),
      "seeds": (0,) if smoke else (0, 1, 2),
      "arms": ("sft", "rft", "rft2", "dpo", "step_dpo.branch"),
      "least_accuracy": 0.0 if smoke else 0.15,
      "rft": {"batch_size": 8, "epochs": 2.0 if smoke else 16.0, "optimizer": {"learning_rate": 1e-3}, **rare},
      "preference": {"batch_size": 16, "epochs": 2.0, "optimizer": {"learning_rate": 1e-4, "weight_decay": 0.0}, **rare},
    },
    "evaluate": {"max_new_tokens": 64},
  })
