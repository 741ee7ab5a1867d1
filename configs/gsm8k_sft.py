"""Supervised fine-tuning on the 7,473 real GSM8K problems, with a small model from scratch.

Command:   python -m synthjax run --config configs/gsm8k_sft.py --workdir runs/gsm8k_sft
Hardware:  2 CPU cores.
Source:    Cobbe et al. 2021 (data); the size is ours: a model this small learns the form and answers about one problem in a hundred.
At 7B:     python -m synthjax plan --config configs/gsm8k_sft.py --config.model=llama2_7b
"""

import ml_collections

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: 200 problems, 20 steps."""
  smoke = variant == "smoke"
  return ml_collections.ConfigDict(
    {
      "name": "gsm8k_sft",
      "model": "tiny_1m",
      "data": {
        "task": "gsm8k",
        "train_problems": 200 if smoke else 0,
        "test_problems": 20 if smoke else 0,
        "tokenizer": {"kind": "sentencepiece", "vocab_size": 512 if smoke else 2048},
        "seq_len": 512,
        "too_long": "drop",
      },
      "train": {
        "batch_size": 16,
        "steps": 20 if smoke else 0,
        "epochs": 4.0,
        "optimizer": {"learning_rate": 3e-3},
        "checkpoint_every": 10 if smoke else 100,
      },
      "evaluate": {"slots": 128, "max_new_tokens": 64 if smoke else 256, "before": False},
    }
  )
