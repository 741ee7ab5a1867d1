"""The star graph: a shortcut of next-token training, and attempts to train out of it.

Command:   python -m synthjax run --config configs/star_graph.py --workdir runs/star_graph
Hardware:  2 CPU cores; an SFT takes two to six minutes, by what else runs, an attempt about one.
Expected:  on G(2, 3, 9) SFT answers 49.0 ± 2.2 % and always walks an arm: the shortcut, in 341 s at
           load 15. Attempts from the late policy: per-step DPO 50.4, awr 50.0, weighted 51.6 %,
           each ± 2.2: nothing broke it (docs/log.md, 2026-11-21). With more arms the walk itself
           takes more than these steps: 15.8 % at d = 3. With train.steps=2500 SFT takes 66 s.
Source:    Bachmann & Nagarajan 2024 (arXiv 2403.06963) for the graph and the failure, Setlur et al.
           2024 (arXiv 2406.14532) for whether per-step training from an early or a late checkpoint
           repairs it; sizes and rates are our choice.
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
  rare = {"checkpoint_every": 10_000, "log_every": 100}
  config = ml_collections.ConfigDict(
    {
      "name": "star_graph",
      "recipe": "star",
      "model": "world_160k",
      # Without it the walk along an arm is learned several times more slowly.
      "model_overrides": {"qk_norm": True},
      "data": {"seq_len": 128},
      "train": {
        "batch_size": 8,
        "steps": 4000,
        "optimizer": {"learning_rate": 5e-3, "schedule": "wsd"},
        **rare,
      },
      "objective": {"preference": {"beta": 0.1, "nll": 1.0}, "advantage": {"beta": 0.3}},
      "study": {
        "preference": {
          "batch_size": 8,
          "epochs": 4.0,
          **rare,
          "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.0},
        }
      },
      "star": {
        "graphs": tuple(_graph(arms) for arms in (2, 3, 4, 5)),
        "problems": 20_000,
        # It walks along arms then, and has not settled on a guess of the first node.
        "early_steps": 1700,
        "test_problems": 500,
        "valued": 200,
        "rollouts": 16,
        "explored": 8000,
        "samples": 4,
        "attempts": ATTEMPTS,
      },
    }
  )
  if variant == "smoke":
    config.train.steps = 20
    config.study.preference.epochs = 1.0
    config.star.graphs = (_graph(2),)
    config.star.problems = 60
    config.star.early_steps = 10
    config.star.test_problems = 20
    config.star.valued = 5
    config.star.rollouts = 4
    config.star.explored = 20
    config.star.attempts = ATTEMPTS[2:5]
  return config


def _graph(arms: int) -> dict:
  # The centre and the arms have 3 * arms + 1 nodes; G(2, 3, 9) has labels to spare.
  return {"arms": arms, "length": 3, "labels": max(9, 3 * arms + 1)}
