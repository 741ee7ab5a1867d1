"""The star graph: the shortcut that next-token training falls into, what step values see of it, and attempts to train out of it.

Command:   python -m synthjax run --config configs/star_graph.py --workdir runs/star_graph
Hardware:  2 CPU cores; each SFT two to six minutes, by what else runs, an attempt about one; with train.steps=2500 SFT takes one.
Expected:  on G(2, 3, 9) SFT answers 49 ± 2 % and always walks an arm: the shortcut; no attempt broke it (docs/log.md). With more arms the
           walk itself takes more than these steps: 16 % at d = 3.
Source:    Bachmann & Nagarajan 2024 (arXiv 2403.06963) for the graph and the failure, Setlur et al. 2024 (arXiv 2406.14532) for whether
           per-step training from an early or a late checkpoint repairs it; sizes and rates are our choice.
"""

import ml_collections

ATTEMPTS = (
  {"name": "step_dpo_late", "arm": "step_dpo"},
  {"name": "step_dpo_early", "arm": "step_dpo", "early": True},
  {"name": "awr_late", "arm": "awr"},
  {"name": "awr_early", "arm": "awr", "early": True},
  {"name": "weighted_late", "arm": "weighted"},
  {"name": "filtered_late", "arm": "filtered_sft"},
  {"name": "filtered_early", "arm": "filtered_sft", "early": True},
  {"name": "awr_late_hot", "arm": "awr", "temperature": 2.0},
  {"name": "awr_late_rounds", "arm": "awr", "rounds": 3},
  {"name": "awr_late_wide", "arm": "awr", "d_model": 128},
)
VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: a tiny graph and a few steps."""
  smoke = variant == "smoke"
  rare = {"checkpoint_every": 10_000, "log_every": 100}
  return ml_collections.ConfigDict(
    {
      "name": "star_graph",
      "recipe": "star",
      "model": "world_160k",
      "model_overrides": {
        "qk_norm": True
      },  # without it the walk along an arm is learned several times more slowly
      "data": {"seq_len": 128},
      "train": {
        "batch_size": 8,
        "steps": 20 if smoke else 4000,
        "optimizer": {"learning_rate": 5e-3, "schedule": "wsd"},
        **rare,
      },
      "objective": {"preference": {"beta": 0.1, "nll": 1.0}, "advantage": {"beta": 0.3}},
      "study": {
        "preference": {
          "batch_size": 8,
          "epochs": 1.0 if smoke else 4.0,
          **rare,
          "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.0},
        }
      },
      "star": {
        "graphs": tuple(
          {"arms": d, "length": 3, "labels": max(9, 3 * d + 1)}
          for d in ((2,) if smoke else (2, 3, 4, 5))
        ),
        "problems": 60 if smoke else 20_000,
        "early_steps": 10 if smoke else 1700,  # it walks along arms, and has not settled on a guess
        "test_problems": 20 if smoke else 500,
        "valued": 5 if smoke else 200,
        "rollouts": 4 if smoke else 16,
        "explored": 20 if smoke else 8000,
        "samples": 4,
        "attempts": ATTEMPTS[2:5] if smoke else ATTEMPTS,
      },
    }
  )
