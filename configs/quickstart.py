"""Study A in minutes: what 128 synthetic problems of the embedded world are worth.

Command:   make quickstart, or
           python -m synthjax run --config configs/quickstart.py --workdir runs/quickstart
Hardware:  2 CPU cores.
Expected:  5 min 6 s after the set-up; base policy 59.6 ± 1.5 %, at N = 128 sft 65.3 ± 2.6 %, rft
           65.4 ± 1.2 %, dpo 68.7 ± 3.5 %, step_dpo.branch 69.7 ± 1.8 % and 1.5 times SFT's problems
           (below 1.0 to above 4.0); the README has the whole table (docs/log.md, 2026-11-24).
Source:    Setlur et al. 2024 (arXiv 2406.14532). The world and the base policy are those of
           configs/math_scaling_world.py, where the argument for them stands; every arm's settings
           come from data/tuned/facts.json, which that config's tuning wrote. Nothing is downloaded.
"""

import dataclasses

import ml_collections

from synthjax import shipped
from synthjax.worlds import shop

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: a minute, untuned, for tests of the loop."""
  rare = {"checkpoint_every": 10_000, "log_every": 10_000}
  config = ml_collections.ConfigDict(
    {
      "name": "quickstart",
      "recipe": "math_rl",
      "model": "world_160k",
      "world": dataclasses.asdict(shop.FACTS),
      "data": {"task": "world", "test_problems": 1000},
      "train": {"batch_size": 8, "init": str(shipped.folder("facts_policy")), **rare},
      "study": {
        "problems": (128,),
        "baseline_problems": (256, 512),
        "seeds": (0, 1, 2, 3),
        "arms": ("sft", "rft", "chosen_only", "dpo", "step_dpo.branch"),
        "tuned": str(shipped.folder("tuned") / "facts.json"),
        "marked": 2,
        "least_accuracy": 0.15,
        "rft": {"batch_size": 8, **rare},
        "preference": {"batch_size": 16, "optimizer": {"weight_decay": 0.0}, **rare},
      },
      "evaluate": {"max_new_tokens": 64},
    }
  )
  if variant == "smoke":
    config.data.test_problems = 50
    config.train.epochs = 2.0
    config.study.problems = (24,)
    config.study.baseline_problems = (48,)
    config.study.seeds = (0,)
    config.study.arms = ("sft", "rft", "rft2", "dpo", "step_dpo.branch")
    config.study.tuned = ""
    config.study.least_accuracy = 0.0
    config.study.rft.epochs = 2.0
    config.study.preference.epochs = 2.0
  return config
