"""Hugging Face checkpoints in and out: one table of names, read both ways.

Families: Llama (DeepSeek-Math, SmolLM2, TinyLlama share it), Mistral, Qwen2 and Qwen3. A key of a
config.json that asks for something else is an error that names the key.

Shapes: D model, H query heads, G key/value heads, K head dim, F hidden width of the MLP,
V vocabulary, L layers.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from synthjax import files
from synthjax.config.schema import Model
from synthjax.model.transformer import Leaf, Params, Transformer

# What says nothing about the forward pass that we compute.
_NEUTRAL = {
  "_model_name_or_path",
  "_name_or_path",
  "architectures",
  "attention_dropout",
  "auto_map",
  "bos_token_id",
  "chunk_size_feed_forward",
  "dtype",
  "eos_token_id",
  "id2label",
  "initializer_range",
  "is_llama_config",
  "label2id",
  "layer_types",  # checked apart
  "max_position_embeddings",
  "max_window_layers",
  "model_type",
  "output_attentions",
  "output_hidden_states",
  "pad_token_id",
  "problem_type",
  "return_dict",
  "rope_interleaved",
  "sliding_window",  # read apart
  "torch_dtype",
  "transformers.js_config",
  "transformers_version",
  "unk_token_id",
  "use_cache",
  "use_sliding_window",  # read apart
}
# What must hold, because the decoder has nothing else.
_REQUIRED = {
  "attention_bias": False,
  "hidden_act": "silu",
  "mlp_bias": False,
  "pretraining_tp": 1,
  "is_encoder_decoder": False,
  "add_cross_attention": False,
}
_SHAPE = {
  "hidden_size": "d_model",
  "num_hidden_layers": "layers",
  "num_attention_heads": "heads",
  "intermediate_size": "mlp_dim",
  "vocab_size": "vocab_size",
  "rms_norm_eps": "norm_epsilon",
  "tie_word_embeddings": "tie_embeddings",
}
_ROPE = {"rope_theta", "rope_scaling", "rope_parameters", "num_key_value_heads", "head_dim"}


class Family(NamedTuple):
  """What tells a family from Llama."""

  architecture: str  # as config.json calls it
  model_type: str
  qkv_bias: bool = False
  qk_norm: bool = False
  window: bool = False  # a sliding window without `use_sliding_window` is in use


FAMILIES = {
  family.architecture: family
  for family in (
    Family("LlamaForCausalLM", "llama"),
    Family("MistralForCausalLM", "mistral", window=True),
    Family("Qwen2ForCausalLM", "qwen2", qkv_bias=True),
    Family("Qwen3ForCausalLM", "qwen3", qk_norm=True),
  )
}


class Name(NamedTuple):
  """A parameter of ours and the tensor that holds it, of one layer where the name has `{}`."""

  ours: tuple[str, ...]
  theirs: str
  transposed: bool = False  # theirs is [out, in]


_TABLE = (
  Name(("embedding",), "model.embed_tokens.weight"),
  Name(("blocks", "attention_norm"), "model.layers.{}.input_layernorm.weight"),
  Name(("blocks", "attention", "query"), "model.layers.{}.self_attn.q_proj.weight", True),
  Name(("blocks", "attention", "key"), "model.layers.{}.self_attn.k_proj.weight", True),
  Name(("blocks", "attention", "value"), "model.layers.{}.self_attn.v_proj.weight", True),
  Name(("blocks", "attention", "out"), "model.layers.{}.self_attn.o_proj.weight", True),
  Name(("blocks", "attention", "query_bias"), "model.layers.{}.self_attn.q_proj.bias"),
  Name(("blocks", "attention", "key_bias"), "model.layers.{}.self_attn.k_proj.bias"),
  Name(("blocks", "attention", "value_bias"), "model.layers.{}.self_attn.v_proj.bias"),
  Name(("blocks", "attention", "query_norm"), "model.layers.{}.self_attn.q_norm.weight"),
  Name(("blocks", "attention", "key_norm"), "model.layers.{}.self_attn.k_norm.weight"),
  Name(("blocks", "mlp_norm"), "model.layers.{}.post_attention_layernorm.weight"),
  Name(("blocks", "mlp", "gate"), "model.layers.{}.mlp.gate_proj.weight", True),
  Name(("blocks", "mlp", "up"), "model.layers.{}.mlp.up_proj.weight", True),
  Name(("blocks", "mlp", "down"), "model.layers.{}.mlp.down_proj.weight", True),
  Name(("final_norm",), "model.norm.weight"),
  Name(("head",), "lm_head.weight", True),
)
NAMES = {name.ours: name for name in _TABLE}

Read = Callable[[str], np.ndarray]  # tensor's name -> the tensor, [out, in] where it is a matrix


def model_of(config: Mapping[str, Any], where: files.Path) -> Model:
  """The decoder's shape from a config.json.

  Raises:
    DataError: an architecture, key or value that the decoder does not have, by its name.
  """
  family = _family(config, where)
  for key, value in config.items():
    known = key in _NEUTRAL or key in _SHAPE or key in _ROPE
    if key in _REQUIRED and value != _REQUIRED[key]:
      raise files.DataError(f"{where}: {key} is {value!r}; our decoder has {_REQUIRED[key]!r} only")
    if not known and key not in _REQUIRED:
      raise files.DataError(
        f"{where}: key {key!r} (value {value!r}) asks for something that our decoder is not known "
        f"to have; supported architectures: {', '.join(FAMILIES)}"
      )
  missing = [key for key in ("hidden_size", "num_hidden_layers", "vocab_size") if key not in config]
  if missing:
    raise files.DataError(f"{where}: {missing[0]} is missing; expected the config.json of a model")
  heads = config["num_attention_heads"]
  shape = {ours: config[theirs] for theirs, ours in _SHAPE.items() if theirs in config}
  return Model(
    **shape,
    kv_heads=config.get("num_key_value_heads") or heads,
    head_dim=config.get("head_dim") or config["hidden_size"] // heads,
    qkv_bias=family.qkv_bias,
    qk_norm=family.qk_norm,
    window=_window(config, family, where),
    **_rope(config, where),
  )


def _family(config, where) -> Family:
  named = config.get("architectures") or ["none"]
  for architecture in named:
    if architecture in FAMILIES:
      return FAMILIES[architecture]
  raise files.DataError(
    f"{where}: architecture {named[0]!r} is not supported; expected one of {', '.join(FAMILIES)}"
  )


def _window(config, family: Family, where) -> int:
  used = config.get("use_sliding_window", family.window)
  window = config.get("sliding_window") or 0
  if not used or not window:
    return 0
  kinds = set(config.get("layer_types") or ["sliding_attention"])
  if kinds != {"sliding_attention"}:
    raise files.DataError(
      f"{where}: layer_types mixes {', '.join(sorted(kinds))}; our decoder has one window for all "
      "layers"
    )
  return window


def _rope(config, where) -> dict[str, Any]:
  """Our fields of the rotary embedding, from both spellings that transformers has used."""
  stated = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
  theta = stated.pop("rope_theta", config.get("rope_theta", 10_000.0))
  kind = stated.pop("rope_type", stated.pop("type", "default"))
  found: dict[str, Any] = {"rope_theta": float(theta)}
  if kind == "default":
    return found
  names = {"factor": "rope_factor"}
  if kind == "llama3":
    names |= {
      "low_freq_factor": "rope_low_freq_factor",
      "high_freq_factor": "rope_high_freq_factor",
      "original_max_position_embeddings": "rope_original_context",
    }
  elif kind != "linear":
    raise files.DataError(
      f"{where}: rope_scaling of type {kind!r}; our decoder has linear and llama3"
    )
  for key, value in stated.items():
    if key not in names:
      raise files.DataError(f"{where}: rope_scaling.{key} is {value!r}, which our decoder has not")
    found[names[key]] = value
  return found | {"rope_scaling": kind}


def config_of(model: Model) -> dict[str, Any]:
  """The config.json of a model.

  Raises:
    DataError: no family has what the model has.
  """
  family = _family_of(model)
  config = {theirs: getattr(model, ours) for theirs, ours in _SHAPE.items()}
  rope: dict[str, Any] = {"rope_theta": model.rope_theta, "rope_type": "default"}
  if model.rope_scaling != "none":
    rope |= {"rope_type": model.rope_scaling, "factor": model.rope_factor}
  if model.rope_scaling == "llama3":
    rope |= {
      "low_freq_factor": model.rope_low_freq_factor,
      "high_freq_factor": model.rope_high_freq_factor,
      "original_max_position_embeddings": model.rope_original_context,
    }
  config |= {
    "architectures": [family.architecture],
    "model_type": family.model_type,
    "num_key_value_heads": model.kv_heads,
    "head_dim": model.head_dim,
    "hidden_act": "silu",
    "rope_parameters": rope,
  }
  if model.window:
    config["sliding_window"] = model.window
  return config


def _family_of(model: Model) -> Family:
  ours = (model.qkv_bias, model.qk_norm, bool(model.window))
  if model.mlp != "swiglu":
    raise files.DataError(
      f"model.mlp is {model.mlp!r}; the Hugging Face families that we write have swiglu only"
    )
  if model.logit_soft_cap or model.attention_soft_cap:
    raise files.DataError("a soft cap on logits or scores: no family that we write has one")
  for family in FAMILIES.values():
    if (family.qkv_bias, family.qk_norm, family.window) == ours:
      return family
  raise files.DataError(
    f"qkv_bias={model.qkv_bias}, qk_norm={model.qk_norm}, window={model.window}: no Hugging Face "
    "family that we write has these together"
  )


def read_params(model: Transformer, read: Read, layout: Any = None) -> Params:
  """The parameters of `model`, tensor by tensor, each at once in its place.

  Args:
    model: says which parameters there are, and their shapes.
    read: gives a tensor by its Hugging Face name. Host memory is one tensor at a time.
    layout: a sharding for every parameter, in the tree of the parameters; None: the first device.

  Raises:
    DataError: a tensor is missing or has another shape, by its name.
  """
  flat = _flat(model.leaves)
  places = _flat(layout) if layout is not None else {}
  found = {}
  for ours, leaf in flat.items():
    found[ours] = _read_leaf(NAMES[ours], leaf, read, places.get(ours))
  return _nested(found)


def _read_leaf(name: Name, leaf: Leaf, read: Read, place) -> jax.Array:
  if "{}" not in name.theirs:
    return jax.device_put(_ours(name, read(name.theirs), leaf.shape), place)
  layers, *shape = leaf.shape
  filled = jax.jit(lambda: jnp.zeros(leaf.shape, jnp.float32), out_shardings=place)()
  put = jax.jit(
    lambda all_L, one, i: jax.lax.dynamic_update_index_in_dim(all_L, one, i, 0),
    donate_argnums=0,
    out_shardings=place,
  )
  for layer in range(layers):
    tensor = read(name.theirs.format(layer))
    filled = put(filled, _ours(name, tensor, tuple(shape), layer), layer)
  return filled


def _ours(name: Name, tensor: np.ndarray, shape: tuple[int, ...], layer: int = 0) -> np.ndarray:
  """A tensor of theirs as float32 in our shape."""
  expected = _their_shape(name, shape)
  if tensor.shape != expected:
    raise files.DataError(
      f"{name.theirs.format(layer)} has the shape {list(tensor.shape)}; expected {list(expected)} "
      "by the model's config.json"
    )
  wide = np.asarray(tensor, np.float32)
  return (wide.T if name.transposed else wide).reshape(shape)


def _their_shape(name: Name, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of a tensor of theirs by ours, of one layer."""
  size = int(np.prod(shape))
  if name.transposed:
    inputs = _inputs(name, shape)
    return size // inputs, inputs
  if name.theirs.endswith("bias"):
    return (size,)
  return shape


def _inputs(name: Name, shape: tuple[int, ...]) -> int:
  """Width of what a matrix of ours is applied to: D, or H * K for the output projection."""
  return shape[0] * shape[1] if name.ours[-1] == "out" else shape[0]


def tensors(model: Transformer, params: Params) -> Iterator[tuple[str, np.ndarray]]:
  """(Hugging Face name, float32 tensor) of every parameter, a layer at a time."""
  flat = _flat(params)
  for ours, leaf in _flat(model.leaves).items():
    name = NAMES[ours]
    if "{}" not in name.theirs:
      yield name.theirs, _theirs(name, np.asarray(flat[ours], np.float32))
      continue
    for layer in range(leaf.shape[0]):
      yield name.theirs.format(layer), _theirs(name, np.asarray(flat[ours][layer], np.float32))


def _theirs(name: Name, array: np.ndarray) -> np.ndarray:
  if not name.transposed:
    return array.reshape(-1) if name.theirs.endswith("bias") else array
  rows = _inputs(name, array.shape)
  return np.ascontiguousarray(array.reshape(rows, -1).T)


def reader(folder: files.Path) -> Read:
  """Reads the tensors of a folder of safetensors, in one file or in several with an index.

  Raises:
    DataError: no such files, a missing shard, a truncated file, a tensor that is in none; pickled
      weights (.bin) are refused.
  """
  folder = pathlib.Path(folder)
  places = _places(folder)
  opened: dict[str, Any] = {}

  def read(name: str) -> np.ndarray:
    if name not in places:
      raise files.DataError(f"{folder}: tensor {name!r} is in none of its files")
    path = folder / places[name]
    if places[name] not in opened:
      opened[places[name]] = _open(path)
    return opened[places[name]].get_tensor(name)

  return read


def check_all_known(model: Model, folder: files.Path) -> None:
  """Raises DataError for a tensor of the folder that the model has no place for, by its name."""
  known = shape_only(model).keys()
  for name in _places(pathlib.Path(folder)):
    # Older files keep the rotary frequencies, and tied heads, which are computed and copied here.
    derived = name.endswith("rotary_emb.inv_freq")
    derived |= model.tie_embeddings and name == "lm_head.weight"
    if name not in known and not derived:
      raise files.DataError(
        f"{folder}: tensor {name!r} is not one of the model that its config.json describes"
      )


def _places(folder: pathlib.Path) -> dict[str, str]:
  """Tensor's name -> the file of the folder that holds it; errors as `reader`."""
  index = folder / "model.safetensors.index.json"
  if index.is_file():
    return files.read_json(index)["weight_map"]
  if (folder / "model.safetensors").is_file():
    return dict.fromkeys(_names(folder / "model.safetensors"), "model.safetensors")
  if list(folder.glob("*.bin")):
    raise files.DataError(
      f"{folder}: holds pickled weights (.bin), which can run code when they are read; convert "
      "them to safetensors with save_pretrained(safe_serialization=True)"
    )
  raise files.DataError(f"{folder}: holds neither model.safetensors nor an index of shards")


def _open(path: pathlib.Path):
  import safetensors

  if not path.is_file():
    raise files.DataError(f"{path}: this shard, which the index names, is missing")
  try:
    return safetensors.safe_open(path, framework="np")
  except safetensors.SafetensorError as e:
    raise files.DataError(f"{path}: not a whole safetensors file ({e}); fetch it again") from e


def _names(path: pathlib.Path) -> list[str]:
  return list(_open(path).keys())


def write(
  folder: pathlib.Path,
  model: Transformer,
  params: Params,
  dtype: Any = np.float32,
  shard_bytes: int = 4 << 30,
) -> None:
  """Writes config.json and safetensors, in shards with an index where they exceed `shard_bytes`."""
  import safetensors.numpy

  config = config_of(model.cfg) | {"dtype": np.dtype(dtype).name}
  files.write_json(folder / "config.json", config)
  shards: list[dict[str, np.ndarray]] = [{}]
  held = 0
  total = 0
  paths: list[pathlib.Path] = []

  def flush() -> None:
    path = folder / f"model-{len(paths) + 1:05}.safetensors"
    safetensors.numpy.save_file(shards[-1], path, metadata={"format": "pt"})
    paths.append(path)

  weight_map: dict[str, int] = {}
  for name, tensor in tensors(model, params):
    tensor = tensor.astype(dtype)
    if held and held + tensor.nbytes > shard_bytes:
      flush()
      shards[-1] = {}
      held = 0
    shards[-1][name] = tensor
    weight_map[name] = len(paths)
    held += tensor.nbytes
    total += tensor.nbytes
  flush()
  _name_shards(folder, paths, weight_map, total)


def _name_shards(folder, paths, weight_map, total) -> None:
  """Renames shards to what transformers looks for, once their number is known."""
  if len(paths) == 1:
    paths[0].rename(folder / "model.safetensors")
    return
  names = []
  for number, path in enumerate(paths, 1):
    names.append(f"model-{number:05}-of-{len(paths):05}.safetensors")
    path.rename(folder / names[-1])
  index = {
    "metadata": {"total_size": total},
    "weight_map": {name: names[shard] for name, shard in weight_map.items()},
  }
  (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _flat(tree, path=()) -> dict[tuple[str, ...], Any]:
  if not isinstance(tree, dict):
    return {path: tree}
  found: dict[tuple[str, ...], Any] = {}
  for key, value in tree.items():
    found |= _flat(value, (*path, key))
  return found


def _nested(flat: Mapping[tuple[str, ...], Any]) -> Params:
  found: Params = {}
  for (*parents, leaf), value in flat.items():
    inner = found
    for parent in parents:
      inner = inner.setdefault(parent, {})
    inner[leaf] = value
  return found


def shape_only(model: Model) -> dict[str, tuple[int, ...]]:
  """Hugging Face name -> shape of every tensor that `write` would write."""
  transformer = Transformer(dataclasses.replace(model, kernels="xla"))
  found: dict[str, tuple[int, ...]] = {}
  for ours, leaf in _flat(transformer.leaves).items():
    name = NAMES[ours]
    shape = leaf.shape[1:] if "{}" in name.theirs else leaf.shape
    for layer in range(leaf.shape[0] if "{}" in name.theirs else 1):
      found[name.theirs.format(layer)] = _their_shape(name, shape)
  return found
