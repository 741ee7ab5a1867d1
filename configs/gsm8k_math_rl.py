"""Study A on real GSM8K: every stage on real text, real steps and real verification.

Command:   python -m synthjax run --config configs/gsm8k_math_rl.py --workdir runs/gsm8k_math_rl
Hardware:  2 CPU cores, about 20 minutes (estimated from a run of the same number of steps).
Expected:  32 minutes of CPU time for 256 problems and 40 epochs: SFT loss 0.036, 618 of 1,024
           samples correct, 30 pits, 28 pairs for step_dpo.paper and 41 for dpo; test accuracy 0 to
           1 % for every arm (docs/log.md, 2026-11-21). `smoke`: 2 min 37 s beside other work. The
           small model from scratch learns its problems by heart, so that its samples of them are
           correct often enough for every stage to have work: what it shows is the loop. The limit
           on sample accuracy is off here; leave it on for a real model.
At 7B:     DeepSeek-Math-7B's shape, from a checkpoint and a tokenizer that you have:
             python -m synthjax plan --config configs/gsm8k_math_rl.py:7b --devices 8
             python -m synthjax run --config configs/gsm8k_math_rl.py:7b --workdir runs/gsm8k_7b \
               --config.train.init=CHECKPOINT --config.data.tokenizer.path=TOKENIZER.json
           CHECKPOINT is a folder in this project's format (what `synthjax export` writes), with the
           fingerprint of that tokenizer; `run` names what is missing before anything else is done.
Sizes:     arms at the small N, SFT alone at the larger ones, so that every multiple can be read off
           SFT's curve: up to 4x, at 7B up to 16x (N = 400) and 8x (N = 800). Of GSM8K's 7,473
           training problems 759 (a tenth, by hash) are kept for development: 6,714 are there.
Source:    Setlur et al. 2024 (arXiv 2406.14532): SFT 5 epochs at 1e-5, samples at T = 0.7, beta
           0.1, lr 5e-7; sizes and N are ours.
"""

import ml_collections

VARIANTS = ("smoke", "7b")
ARMS = ("sft", "rft", "rft2", "dpo", "step_dpo.paper", "step_dpo.branch", "awr")
RARE = {"checkpoint_every": 500, "log_every": 100}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: minutes; `7b`: DeepSeek-Math-7B's shape, from your checkpoint and tokenizer."""
  config = ml_collections.ConfigDict(_small())
  if variant == "smoke":
    config.update(_smoke())
  if variant == "7b":
    config.update(_7b())
  return config


def _small() -> dict:
  sampling = {"max_tokens": 128, "temperature": 0.7}
  by_heart = {"batch_size": 2, "epochs": 40.0, "optimizer": {"learning_rate": 2e-3}, **RARE}
  return {
    "name": "gsm8k_math_rl",
    "recipe": "math_rl",
    "model": "tiny_1m",
    "data": {
      "task": "gsm8k",
      "test_problems": 200,
      # learned from the training problems; a model with a vocabulary of its own needs its own
      "tokenizer": {"kind": "sentencepiece", "path": "", "vocab_size": 1024},
      "seq_len": 512,
      "too_long": "drop",
    },
    "train": {"init": "", **by_heart},
    "objective": {"preference": {"beta": 0.1, "nll": 1.0}},
    "study": {
      "problems": (128,),
      "baseline_problems": (256, 512),
      "seeds": (0,),
      "arms": ARMS,
      "sampling": sampling,
      "samples": 4,
      "values": {"rollouts": 4, "block": 4, "keep": 2, "schedule": "full", "sampling": sampling},
      "incorrect": 1,
      "least_accuracy": 0.0,
      "step_limit": 16,
      "rft": by_heart,
      "preference": {
        "batch_size": 8,
        "epochs": 2.0,
        "optimizer": {"learning_rate": 2e-4},
        **RARE,
      },
    },
    "evaluate": {"max_new_tokens": 128},
  }


def _smoke() -> dict:
  sampling = {"max_tokens": 24}
  return {
    "data": {"test_problems": 20},
    "train": {"epochs": 2.0},
    "study": {
      "problems": (12,),
      "baseline_problems": (24,),
      "sampling": sampling,
      "samples": 2,
      "values": {"rollouts": 2, "block": 2, "sampling": sampling},
      "rft": {"epochs": 2.0},
    },
    "evaluate": {"max_new_tokens": 24},
  }


def _7b() -> dict:
  sampling = {"max_tokens": 512}
  return {
    "model": "deepseek_7b",
    "data": {
      "test_problems": 0,
      # yours: the checkpoint's own, of at most the model's 102,400 ids
      "tokenizer": {"kind": "hf", "path": "checkpoints/deepseek_math_7b/tokenizer.json"},
      "seq_len": 1024,
    },
    "train": {
      "init": "checkpoints/deepseek_math_7b",  # yours
      "batch_size": 64,
      "epochs": 5.0,
      "optimizer": {"learning_rate": 1e-5},
    },
    "study": {
      "problems": (400, 800),
      "baseline_problems": (1600, 3200, 6400),
      "seeds": (0, 1, 2),
      "sampling": sampling,
      "samples": 8,
      "values": {"rollouts": 16, "block": 16, "schedule": "first_fail", "sampling": sampling},
      "incorrect": 8,
      "least_accuracy": 0.25,
      "rft": {"batch_size": 64, "epochs": 3.0, "optimizer": {"learning_rate": 1e-5}},
      "preference": {"batch_size": 64, "optimizer": {"learning_rate": 5e-7}},
    },
    "evaluate": {"max_new_tokens": 512},
  }
