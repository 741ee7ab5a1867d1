"""Study A on real GSM8K: every stage on real text, real steps and real verification.

Command:   python -m synthjax run --config configs/gsm8k_math_rl.py --workdir runs/gsm8k_math_rl
Hardware:  2 CPU cores, under 30 minutes: a small model from scratch on 256 problems. It learns those by heart, so that its samples of
           them are right often enough for every stage to have work, and answers no test problem: what it shows is the loop. The
           guard on sample accuracy is off here; leave it on for a real model.
At 7B:     python -m synthjax plan --config configs/gsm8k_math_rl.py:7b --devices 8
Source:    Setlur et al. 2024 (arXiv 2406.14532): SFT 5 epochs at 1e-5, samples at T = 0.7, beta 0.1, lr 5e-7; sizes of the small variant
           are ours.
"""

import ml_collections

VARIANTS = ("smoke", "7b")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: minutes; `7b`: the paper's DeepSeek-Math-7B, from a checkpoint in this project's format (train.init)."""
  large, smoke = variant == "7b", variant == "smoke"
  rare = {"checkpoint_every": 500, "log_every": 100}
  rate = lambda small, big: {"optimizer": {"learning_rate": big if large else small}, **rare}
  return ml_collections.ConfigDict({
    "name": "gsm8k_math_rl",
    "recipe": "math_rl",
    "model": "deepseek_7b" if large else "tiny_1m",
    "data": {
      "task": "gsm8k",
      "test_problems": 0 if large else 20 if smoke else 200,
      "tokenizer": {"kind": "sentencepiece", "vocab_size": 1024},
      "row_length": 1024 if large else 512,
      "too_long": "drop",
    },
    "train": {"batch_size": 64 if large else 2, "epochs": 5.0 if large else 2.0 if smoke else 40.0, **rate(2e-3, 1e-5)},
    "objective": {"preference": {"beta": 0.1, "nll": 1.0}},
    "study": {
      "problems": (6500,) if large else (24,) if smoke else (256,),
      "baseline_problems": (1000, 3500) if large else (12,) if smoke else (128,),
      "seeds": (0, 1, 2) if large else (0,),
      "arms": ("sft", "rft", "rft2", "dpo", "step_dpo.paper", "step_dpo.branch", "awr"),
      "sampling": {"max_tokens": 512 if large else 24 if smoke else 128, "temperature": 0.7},
      "samples": 8 if large else 2 if smoke else 4,
      "values": {"rollouts": 16 if large else 2 if smoke else 4, "block": 16, "keep": 2, "schedule": "first_fail" if large else "full",
                 "sampling": {"max_tokens": 512 if large else 24 if smoke else 128, "temperature": 0.7}},
      "wrong": 8 if large else 1,
      "least_accuracy": 0.25 if large else 0.0,
      "step_limit": 16,
      "rft": {"batch_size": 64 if large else 2, "epochs": 3.0 if large else 2.0 if smoke else 40.0, **rate(2e-3, 1e-5)},
      "preference": {"batch_size": 64 if large else 8, "epochs": 2.0, **rate(2e-4, 5e-7)},
    },
    "evaluate": {"max_new_tokens": 512 if large else 24 if smoke else 128},
  })
