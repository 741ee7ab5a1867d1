"""Study A on the embedded world: what N synthetic problems are worth, N from 128 to 4096, three seeds.

Command:   python -m synthjax run --config configs/math_scaling_world.py --workdir runs/math_scaling_world
Hardware:  2 CPU cores: about an hour (a process a core, each with its own study.seeds and one WORKDIR, then one run with all of them).
Source:    Setlur et al. 2024 (arXiv 2406.14532); sizes and rates are our choice, made on development problems.
"""

import ml_collections

from synthjax import shipped

BASE = shipped.folder("base_policy")
VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: one small cell."""
  smoke = variant == "smoke"
  rare = {"checkpoint_every": 10_000, "log_every": 1000}
  return ml_collections.ConfigDict({
    "name": "math_scaling_world",
    "recipe": "math_rl",
    "model": "world_160k",
    "data": {"task": "world", "test_problems": 100 if smoke else 1000},
    "train": {"batch_size": 8, "init": str(BASE), "epochs": 20.0, "optimizer": {"learning_rate": 1e-3}, **rare},
    "objective": {"preference": {"beta": 0.1, "nll": 1.0}, "advantage": {"beta": 0.15}},
    "study": {
      "problems": (32, 64) if smoke else (128, 256, 512, 1024),
      "baseline_problems": () if smoke else (2048, 4096, 8192),
      "seeds": (0,) if smoke else (0, 1, 2),
      "arms": ("sft", "rft", "rft2", "rft2*3", "dpo", "step_dpo.paper", "step_dpo.branch", "step_dpo.branch*3", "awr"),
      "control": () if smoke else (128, 512),
      "least_accuracy": 0.0 if smoke else 0.15,  # our policies are weaker than the paper's: guards on single pits do the work
      "rft": {"batch_size": 8, "epochs": 8.0, "optimizer": {"learning_rate": 1e-3}, **rare},
      "preference": {"batch_size": 16, "epochs": 2.0, "optimizer": {"learning_rate": 1e-4, "weight_decay": 0.0}, **rare},
    },
    "evaluate": {"max_new_tokens": 64},
  })
