"""Supervised fine-tuning on problems with worked solutions, and evaluation by their final answers.

Command:   synthjax run --config THIS_FILE --workdir runs/my_sft
Data:      JSONL, a problem a row: {"question", "solution", "answer"}, optionally "id". The answer
           ends the solution as evaluate.answer says. Test problems need no solution.
Expected:  the loop, in minutes: a tiny model from random parameters learns the form and answers
           hardly any test problem. For numbers that mean something start from a policy
           (train.init).
Change:    any field here, or in the command: --config.train.epochs=5. What there is:
           synthjax config --explain, or --explain train
"""

import ml_collections

from synthjax import shipped

EXAMPLES = shipped.folder("examples")  # 64 and 16 problems, to see it run: put your own paths below


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "name": "my_sft",
      "recipe": "finetune",
      "model": "world_160k",  # tiny; `synthjax config --explain model` lists presets
      "data": {
        "task": "problems",
        "train_path": str(EXAMPLES / "problems_train.jsonl"),  # a file or a glob
        # Never trained on: overlap stops the run.
        "test_path": str(EXAMPLES / "problems_test.jsonl"),
        # For real text: sentencepiece (learned from it), hf or gpt2.
        "tokenizer": {"kind": "bytes"},
        "seq_len": 256,  # tokens of a packed sequence
        "too_long": "error",  # what happens to longer ones: drop, truncate, split, error
      },
      "train": {
        "init": "",  # folder of checkpoints to start from; "": random parameters
        "batch_size": 8,  # packed sequences
        "epochs": 20.0,
        "optimizer": {"learning_rate": 3e-3},
      },
      "evaluate": {
        "answer": "hash",  # after '####'; also answer_is, final_line, boxed
        "max_new_tokens": 64,
      },
    }
  )
