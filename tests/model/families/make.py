"""Makes the tiny models of this folder and their golden logits by transformers.

Run it with the parity requirements (`make parity`): python tests/model/families/make.py
It was run with transformers 5.23.0 and torch 2.13.0.
"""

import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
SHAPE = {
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "vocab_size": 96,
  "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
  "rope_theta": 5e5,
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
FAMILIES = {
  "llama": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
  "llama_tied": ("Llama", {"tie_word_embeddings": True}),
  "mistral": ("Mistral", {"sliding_window": 8, "head_dim": 12}),
  "qwen2": ("Qwen2", {}),
  "qwen3": ("Qwen3", {"head_dim": 16}),
}
TOKENS = 24


def main() -> None:
  for name, (family, options) in FAMILIES.items():
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE, **options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
      # Fresh norms are 1 and biases 0: a mix-up of those would not show.
      for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(HERE / name)
    ids = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (2, TOKENS))
    with torch.no_grad():
      logits = model(torch.tensor(ids)).logits.numpy()
    np.savez_compressed(HERE / name / "golden.npz", ids=ids, logits=logits)
    (HERE / name / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
  main()
