"""Supervised fine-tuning on the 7,473 real GSM8K problems, with a small model from scratch.

Command:   python -m synthjax run --config configs/gsm8k_sft.py --workdir runs/gsm8k_sft
Hardware:  2 CPU cores.
Expected:  682 steps in 12 min 57 s beside other work; held-out loss 2.674, 1.6 ± 0.3 % of the 1,319
           test problems (docs/log.md, 2026-11-21). A model this small learns the form.
Source:    Cobbe et al. 2021 (data); the size is our choice.
At 7B:     python -m synthjax plan --config configs/gsm8k_sft.py --config.model=llama2_7b
"""

import ml_collections

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: 200 problems, 20 steps."""
  config = ml_collections.ConfigDict(
    {
      "name": "gsm8k_sft",
      "model": "tiny_1m",
      "data": {
        "task": "gsm8k",
        "train_problems": 0,
        "test_problems": 0,
        "tokenizer": {"kind": "sentencepiece", "vocab_size": 2048},
        "seq_len": 512,
        "too_long": "drop",
      },
      "train": {
        "batch_size": 16,
        "steps": 0,
        "epochs": 4.0,
        "optimizer": {"learning_rate": 3e-3},
        "checkpoint_every": 100,
      },
      "evaluate": {"slots": 128, "max_new_tokens": 256, "before": False},
    }
  )
  if variant == "smoke":
    config.data.train_problems = 200
    config.data.test_problems = 20
    config.data.tokenizer.vocab_size = 512
    config.train.steps = 20
    config.train.checkpoint_every = 10
    config.evaluate.max_new_tokens = 64
  return config
