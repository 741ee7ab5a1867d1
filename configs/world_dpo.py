"""Preference training on the embedded world from a file of pairs.

Command:   python -m synthjax run --config configs/world_dpo.py --workdir runs/world_dpo \\
             --config.objective.pairs=PAIRS.jsonl \\
             --config.train.init=runs/world_sft/train/checkpoints
Hardware:  2 CPU cores, a minute for a thousand pairs.
Expected:  from an RFT policy at 23.8 ± 1.9 %, with 329 weighted pairs of N = 128, 8 epochs, no
           anchor and 500 test problems: awr +11.2 ± 1.8 points, filtered_sft +13.8 ± 1.9, kto +9.8
           ± 2.4 (docs/log.md, 2026-11-24).
Source:    Rafailov et al. 2023 (DPO); per-step weights after Setlur et al. 2024. Rates and steps
           are our choice.

A pair is a line {problem_id, prefix, chosen, rejected, mode}; `metadata` may hold the sampled
tokens, and a weight and an advantage for every step: see synthjax/data/pair_trees.py.
"""

import ml_collections

from synthjax import shipped

BASE = shipped.folder("base_policy")
VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: a few steps."""
  config = ml_collections.ConfigDict(
    {
      "name": "world_dpo",
      "recipe": "preference",
      "model": "world_160k",
      "objective": {"loss": "step_dpo", "preference": {"beta": 0.1, "nll": 1.0}},
      "data": {"task": "world", "test_problems": 1000},
      "train": {
        "init": str(BASE),
        "batch_size": 16,
        "steps": 0,
        "epochs": 3.0,
        "optimizer": {"learning_rate": 1e-4, "weight_decay": 0.0},
        "checkpoint_every": 100,
      },
      "evaluate": {"max_new_tokens": 40},
    }
  )
  if variant == "smoke":
    config.data.test_problems = 50
    config.train.steps = 10
    config.train.checkpoint_every = 5
  return config
