"""Pre-training on two sources of text at an exact share, with the loss on held-out text.

Command:   synthjax run --config THIS_FILE --workdir runs/my_pretrain
Data:      JSONL of {"text": ...}, optionally "id"; or plain text, a document a line (FILE.txt).
Change:    any field here, or in the command: --config.train.steps=1000. What there is:
           synthjax config --explain, or --explain data
"""

import ml_collections

from synthjax import shipped

EXAMPLES = shipped.folder("examples")  # a few texts, to see it run: put your own paths below


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "name": "my_pretrain",
      "recipe": "finetune",
      "model": "world_160k",  # a tiny decoder; `synthjax config --explain model` lists presets
      "data": {
        "task": "text",
        # Shares of the packed sequences, exact at every step.
        "mixture": (
          {"task": "text", "path": str(EXAMPLES / "stories.jsonl"), "rate": 70.0},
          {"task": "text", "path": str(EXAMPLES / "sums.jsonl"), "rate": 30.0},
        ),
        "test_path": str(EXAMPLES / "stories_held_out.jsonl"),  # for the held-out loss
        # For real text: sentencepiece (learned from it), hf or gpt2.
        "tokenizer": {"kind": "bytes"},
        "seq_len": 256,  # tokens of a packed sequence
        "too_long": "split",
      },
      "train": {
        "batch_size": 8,  # packed sequences
        "steps": 100,  # a mixture has no epochs
        "eval_every": 50,  # steps between two held-out losses
        "checkpoint_every": 50,
        "optimizer": {"learning_rate": 3e-3, "schedule": "wsd"},
      },
    }
  )
