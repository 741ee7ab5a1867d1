"""Ablations of study A on the embedded world's development problems: one argument, one change.

Command:   see docs/log.md, "ablations of study A": `arms` first; its work folder, copied, holds the
           SFT and RFT policies of all others.
           python -m synthjax run --config configs/world_ablations.py:best_of_5 \\
             --workdir runs/ablations/best_of_5
Hardware:  2 CPU cores; beside much other work `arms` took 15 minutes, the others 2 to 4 each where
           the work folder has the policies.
Expected:  `arms` (three seeds): sft 22.7 ± 1.3 %, rft 32.1 ± 5.2, clean picks 53.9 ± 9.7, spurious
           picks 12.2 ± 2.0, filtered_sft 48.6 ± 6.8. `plain` (two seeds): step_dpo.paper 58.2 and
           83.5 %, step_dpo.branch 59.2 and 85.9 % (docs/log.md, 2026-11-21, when preference arms
           started from RFT).
Source:    Setlur et al. 2024 (arXiv 2406.14532) for the questions; sizes and rates are those of
           configs/math_scaling_world.py.
"""

import ml_collections

from synthjax import shipped

BASE = shipped.folder("base_policy")
STEPS = ("sft", "rft", "step_dpo.paper", "step_dpo.branch")
# What differs from `plain`.
CHANGES: dict[str, dict] = {
  "plain": {},
  "best_of_5": {"study.values.best_of": 5},
  "rollouts_4": {"study.values.rollouts": 4},
  "rollouts_16": {"study.values.rollouts": 16},
  "beta_003": {"objective.preference.beta": 0.03},
  "beta_03": {"objective.preference.beta": 0.3},
  "arms": {
    "study.arms": ("sft", "rft", "rft_clean", "rft_spurious", "rft_many", "filtered_sft"),
    "study.seeds": (0, 1, 2),
  },
}
VARIANTS = (*CHANGES, "smoke")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """A name in CHANGES; `smoke`: `plain` on a small cell."""
  rare = {"checkpoint_every": 10_000, "log_every": 10_000}
  config = ml_collections.ConfigDict(
    {
      "name": f"world_ablations_{variant or 'plain'}",
      "recipe": "math_rl",
      "model": "world_160k",
      "data": {"task": "world", "test_problems": 1000},
      "train": {
        "batch_size": 8,
        "init": str(BASE),
        "epochs": 20.0,
        "optimizer": {"learning_rate": 1e-3},
        **rare,
      },
      "objective": {"preference": {"beta": 0.1, "nll": 1.0}, "advantage": {"beta": 0.15}},
      "study": {
        "problems": (512,),
        "baseline_problems": (1024,),
        "seeds": (0, 1),
        "arms": STEPS,
        "split": "dev",
        "least_accuracy": 0.15,
        "values": {
          "rollouts": 8,
          "best_of": 1,
          "block": 8,
          "keep": 4,
          "sampling": {"max_tokens": 64, "temperature": 0.7},
        },
        "pairs": {"pit": "first"},
        "rft": {
          "batch_size": 8,
          "epochs": 8.0,
          "optimizer": {"learning_rate": 1e-3},
          **rare,
        },
        "preference": {
          "batch_size": 16,
          "epochs": 2.0,
          "optimizer": {"learning_rate": 1e-4, "weight_decay": 0.0},
          **rare,
        },
      },
      "evaluate": {"max_new_tokens": 64},
    }
  )
  if variant == "smoke":
    config.data.test_problems = 100
    config.train.epochs = 2.0
    config.study.problems = (32,)
    config.study.baseline_problems = (64,)
    config.study.seeds = (0,)
    config.study.least_accuracy = 0.0
    config.study.rft.epochs = 2.0
  elif variant:
    config.update_from_flattened_dict(CHANGES[variant])
  return config
