"""TRL's own DPOTrainer on the shapes of `bench preference_step`: a Llama of the same size, pairs of made-up words."""

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

from synthjax.config.schema import Model


def model_of(cfg: Model, params) -> LlamaForCausalLM:
  """The decoder as a Hugging Face Llama with the same parameters."""
  config = LlamaConfig(
    vocab_size=cfg.vocab_size,
    hidden_size=cfg.d_model,
    intermediate_size=cfg.mlp_dim,
    num_hidden_layers=cfg.layers,
    num_attention_heads=cfg.heads,
    num_key_value_heads=cfg.kv_heads,
    head_dim=cfg.head_dim,
    rms_norm_eps=cfg.norm_epsilon,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=0,
    attn_implementation="sdpa",
  )
  model = LlamaForCausalLM(config).float()
  flat = lambda x: torch.tensor(np.asarray(x))
  blocks, attention, mlp = params["blocks"], params["blocks"]["attention"], params["blocks"]["mlp"]
  with torch.no_grad():
    model.model.embed_tokens.weight.copy_(flat(params["embedding"]))
    model.model.norm.weight.copy_(flat(params["final_norm"]))
    for i, layer in enumerate(model.model.layers):
      for name, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        getattr(layer.self_attn, theirs).weight.copy_(flat(attention[name][i]).flatten(1).T)
      layer.self_attn.o_proj.weight.copy_(flat(attention["out"][i]).flatten(0, 1).T)
      for name in ("up", "gate", "down"):
        getattr(layer.mlp, f"{name}_proj").weight.copy_(flat(mlp[name][i]).T)
      layer.input_layernorm.weight.copy_(flat(blocks["attention_norm"][i]))
      layer.post_attention_layernorm.weight.copy_(flat(blocks["mlp_norm"][i]))
  return model


def train(
  model: LlamaForCausalLM,
  pairs: list[dict[str, list[int]]],
  steps: int,
  precomputed: bool,
  threads: int,
  between: Callable[[str, dict[str, Any]], None],
) -> dict[str, Any]:
  """Runs DPOTrainer for `steps` steps of all pairs; calls `between("begin" | "end", ...)` around each. Returns what it logged first."""
  import datasets
  import tokenizers

  torch.set_num_threads(threads)
  words = {f"w{i}": i for i in range(model.config.vocab_size)}
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=inner, eos_token="w0", pad_token="w0", unk_token="w0"
  )
  text = lambda ids: "".join(f" w{i}" for i in ids)
  rows = [{name: text(ids) for name, ids in pair.items()} for pair in pairs] * steps
  log: dict[str, Any] = {}

  class Callback(TrainerCallback):
    def on_step_begin(self, *_, **__):
      between("begin", log)

    def on_step_end(self, *_, **__):
      between("end", log)

    def on_log(self, args, state, control, logs=None, **_):
      for key, value in (logs or {}).items():
        log.setdefault(key, value)

  with tempfile.TemporaryDirectory() as folder:
    args = DPOConfig(
      output_dir=folder,
      per_device_train_batch_size=len(pairs),
      max_steps=steps,
      beta=0.1,
      learning_rate=1e-4,
      logging_steps=1,
      precompute_ref_log_probs=precomputed,
      max_length=4096,
      report_to=[],
      use_cpu=True,
      save_strategy="no",
      disable_tqdm=True,
      gradient_checkpointing=False,
      bf16=False,
      optim="adamw_torch_fused",
      dataloader_pin_memory=False,
    )
    trainer = DPOTrainer(
      model=model,
      ref_model=copy.deepcopy(model),
      args=args,
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=tokenizer,
      callbacks=[Callback()],
    )
    trainer.train()
  return log
