"""Study A on problems with worked solutions: what N of them are worth under SFT, RFT and DPO.

Command:   synthjax run --config THIS_FILE --workdir runs/my_study
Data:      JSONL, a problem a row: {"question", "solution", "answer"}, optionally "id". The answer
           ends the solution as evaluate.answer says, and steps are those of data.steps. Test
           problems need no solution.
Change:    any field here, or in the command: --config.study.seeds="(0,1,2)". What there is:
           synthjax config --explain, or --explain study
Expected:  the loop, in minutes: a tiny model from random parameters answers no test problem. For
           numbers that mean something start from a policy (train.init) that answers a quarter.
"""

import ml_collections

from synthjax import shipped

EXAMPLES = shipped.folder("examples")  # 64 and 16 problems, to see it run: put your own paths below


def get_config() -> ml_collections.ConfigDict:
  rare = {"checkpoint_every": 10_000, "log_every": 100}
  sampling = {"max_tokens": 64, "temperature": 0.7}
  return ml_collections.ConfigDict(
    {
      "name": "my_study",
      "recipe": "math_rl",
      "model": "world_160k",
      "data": {
        "task": "problems",
        "train_path": str(EXAMPLES / "problems_train.jsonl"),  # a tenth is kept for development
        "test_path": str(EXAMPLES / "problems_test.jsonl"),
        "steps": "gsm8k",  # a step is a line; math: a sentence, outside LaTeX
        "tokenizer": {"kind": "bytes"},
        "seq_len": 256,
      },
      # Of sft; the other arms are below.
      "train": {"batch_size": 8, "epochs": 20.0, "optimizer": {"learning_rate": 3e-3}, **rare},
      "study": {
        "problems": (24,),  # N: every arm is trained at each
        "baseline_problems": (48,),  # further N for SFT alone: multiples are read off its curve
        "seeds": (0,),  # three give intervals that hold the spread of seeds
        "arms": ("sft", "rft", "rft2", "dpo", "step_dpo.branch"),
        "sampling": sampling,
        "samples": 4,  # traces drawn a problem
        "values": {"rollouts": 4, "block": 4, "keep": 2, "sampling": sampling},
        "least_accuracy": 0.0,  # leave it at 0.25 for a real model: below that pits are noise
        "rft": {"batch_size": 8, "epochs": 10.0, "optimizer": {"learning_rate": 3e-3}, **rare},
        "preference": {
          "batch_size": 8,
          "epochs": 2.0,
          "optimizer": {"learning_rate": 2e-4},
          **rare,
        },
      },
      "evaluate": {
        "answer": "hash",  # after '####'; also answer_is, final_line, boxed
        "max_new_tokens": 64,
      },
    }
  )
