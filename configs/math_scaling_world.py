"""Study A on the embedded world: what N synthetic problems are worth, N from 128 to 4096, three seeds.

Command:   python -m synthjax run --config configs/math_scaling_world.py --workdir runs/math_scaling_world
Hardware:  2 CPU cores.
Source:    Setlur et al. 2024 (arXiv 2406.14532); sizes and rates are our choice, made on development problems.
"""

import pathlib

import ml_collections

BASE = pathlib.Path(__file__).absolute().parents[1] / "data/base_policy"


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """`smoke`: one small cell."""
  smoke = arg == "smoke"
  rft = {"batch_size": 16, "epochs": 5.0, "optimizer": {"learning_rate": 1e-3}, "checkpoint_every": 10_000, "log_every": 1000}
  return ml_collections.ConfigDict({
    "name": "math_scaling_world",
    "recipe": "math_rl",
    "model": "world_160k",
    "data": {"task": "world", "test_problems": 100 if smoke else 1000},
    "train": {"batch_size": 16, "init": str(BASE), "epochs": 10.0, "optimizer": {"learning_rate": 1e-3}, "checkpoint_every": 10_000,
              "log_every": 1000},
    "objective": {"preference": {"beta": 0.1, "nll": 1.0}},
    "study": {
      "problems": (64,) if smoke else (128, 256, 512, 1024, 2048, 4096),
      "seeds": (0,) if smoke else (0, 1, 2),
      "arms": ("sft", "rft", "rft2", "dpo", "step_dpo.paper", "step_dpo.branch", "step_dpo.step", "step_dpo.weighted", "awr"),
      "rft": rft,
      "preference": {"batch_size": 16, "epochs": 2.0, "optimizer": {"learning_rate": 2e-4, "weight_decay": 0.0}, "checkpoint_every": 10_000,
                     "log_every": 1000},
    },
    "evaluate": {"max_new_tokens": 64},
  })
