"""TRL's own DPOTrainer on the shapes of `bench preference_step`: a Llama of the same size, and
pairs of made-up words.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

from synthjax.config.schema import Model

Between = Callable[[str, dict[str, Any]], None]


def model_of(cfg: Model, params: Mapping) -> LlamaForCausalLM:
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
  with torch.no_grad():
    model.model.embed_tokens.weight.copy_(_tensor(params["embedding"]))
    model.model.norm.weight.copy_(_tensor(params["final_norm"]))
    for i, layer in enumerate(model.model.layers):
      _copy_layer(layer, params["blocks"], i)
  return model


def _copy_layer(layer, blocks: Mapping, i: int) -> None:
  # Ours are [inputs, outputs], with heads as axes of their own; Hugging Face's [outputs, inputs].
  attention, mlp = blocks["attention"], blocks["mlp"]
  for name, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
    weight_DHK = _tensor(attention[name][i])
    getattr(layer.self_attn, theirs).weight.copy_(weight_DHK.flatten(1).T)
  layer.self_attn.o_proj.weight.copy_(_tensor(attention["out"][i]).flatten(0, 1).T)
  for name in ("up", "gate", "down"):
    getattr(layer.mlp, f"{name}_proj").weight.copy_(_tensor(mlp[name][i]).T)
  layer.input_layernorm.weight.copy_(_tensor(blocks["attention_norm"][i]))
  layer.post_attention_layernorm.weight.copy_(_tensor(blocks["mlp_norm"][i]))


def _tensor(x) -> torch.Tensor:
  return torch.tensor(np.asarray(x))


def train(
  model: LlamaForCausalLM,
  pairs: list[dict[str, list[int]]],
  steps: int,
  precomputed: bool,
  threads: int,
  between: Between,
) -> dict[str, Any]:
  """Runs DPOTrainer.

  Args:
    model: the policy and, as a copy, the reference.
    pairs: token ids of `prompt`, `chosen` and `rejected`.
    steps: number of them; each takes all pairs.
    precomputed: compute the reference's log-probs before the training.
    threads: of PyTorch.
    between: called with "begin" before each step and "end" after it, and with the log so far.

  Returns:
    The log: the first value of each metric.
  """
  import datasets

  torch.set_num_threads(threads)
  rows = []
  for pair in pairs:
    rows.append({name: _words(ids) for name, ids in pair.items()})
  log: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as folder:
    trainer = DPOTrainer(
      model=model,
      ref_model=copy.deepcopy(model),
      args=_arguments(folder, len(pairs), steps, precomputed),
      train_dataset=datasets.Dataset.from_list(rows * steps),
      processing_class=_tokenizer(model.config.vocab_size),
      callbacks=[_make_callback(between, log)],
    )
    trainer.train()
  return log


def _arguments(folder: str, batch_size: int, steps: int, precomputed: bool) -> DPOConfig:
  return DPOConfig(
    output_dir=folder,
    per_device_train_batch_size=batch_size,
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


def _words(ids: list[int]) -> str:
  return "".join(f" w{i}" for i in ids)


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
  """A word a token: DPOTrainer takes text, and the ids have to come back as they were."""
  import tokenizers

  words = {f"w{i}": i for i in range(vocab_size)}
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(
    tokenizer_object=inner, eos_token="w0", pad_token="w0", unk_token="w0"
  )


def _make_callback(between: Between, log: dict[str, Any]) -> TrainerCallback:
  class Callback(TrainerCallback):
    def on_step_begin(self, *_, **__):
      between("begin", log)

    def on_step_end(self, *_, **__):
      between("end", log)

    def on_log(self, args, state, control, logs=None, **_):
      for key, value in (logs or {}).items():
        log.setdefault(key, value)

  return Callback()
