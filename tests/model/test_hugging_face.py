"""Hugging Face's format in and out.

families/make.py made the models and their logits with transformers.
"""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from synthjax import files
from synthjax.config import presets
from synthjax.config.schema import Model
from synthjax.model import hugging_face
from synthjax.model.transformer import Transformer

FAMILIES = pathlib.Path(__file__).parent / "families"
NAMES = ("llama", "llama_tied", "mistral", "qwen2", "qwen3")


def _load(folder: pathlib.Path):
  config = files.read_json(folder / "config.json")
  model = Transformer(hugging_face.model_of(config, folder / "config.json"))
  return model, hugging_face.read_params(model, hugging_face.reader(folder))


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
  model, params = _load(FAMILIES / name)
  golden = np.load(FAMILIES / name / "golden.npz")
  ids_BT = jnp.asarray(golden["ids"])
  positions_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1]), ids_BT.shape)
  until_BT = jnp.full(ids_BT.shape, ids_BT.shape[1])
  logits = model.logits(params, model.hidden(params, ids_BT, positions_BT, until_BT))
  np.testing.assert_allclose(logits, golden["logits"], atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_back_bit_for_bit(name, tmp_path):
  model, params = _load(FAMILIES / name)
  hugging_face.write(tmp_path, model, params, shard_bytes=10_000)
  assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
  again, same_params = _load(tmp_path)
  assert again.cfg == model.cfg
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, same_params))


def test_the_table_names_every_tensor_of_the_files():
  for name in NAMES:
    folder = FAMILIES / name
    model, _ = _load(folder)
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    shapes = {key: tensor.shape for key, tensor in stored.items()}
    assert hugging_face.shape_only(model.cfg) == shapes


def test_a_7b_model_has_its_published_tensors_by_shape_only():
  shapes = hugging_face.shape_only(presets.PRESETS["llama2_7b"])
  assert sum(int(np.prod(shape)) for shape in shapes.values()) == 6_738_415_616
  assert shapes["model.layers.31.mlp.down_proj.weight"] == (4096, 11_008)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"architectures": ["GPT2LMHeadModel"]}, "architecture 'GPT2LMHeadModel' is not supported"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; our decoder has 'silu' only"),
    ({"final_logit_softcapping": 30.0}, "key 'final_logit_softcapping'"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling of type 'yarn'"),
  ],
)
def test_what_the_decoder_lacks_is_refused_by_its_key(change, message):
  config = files.read_json(FAMILIES / "llama" / "config.json")
  with pytest.raises(files.DataError, match=message):
    hugging_face.model_of({**config, **change}, "config.json")


def test_damaged_folders_are_refused_with_the_reason(tmp_path):
  folder = tmp_path / "model"
  shutil.copytree(FAMILIES / "llama", folder)
  whole = (folder / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(files.DataError, match="not a whole safetensors file"):
    _load(folder)
  (folder / "model.safetensors").unlink()
  (folder / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(files.DataError, match="pickled weights"):
    _load(folder)
  names = hugging_face.shape_only(_load(FAMILIES / "llama")[0].cfg)
  index = {"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(files.DataError, match="this shard, which the index names, is missing"):
    _load(folder)


def test_a_tensor_of_another_shape_is_named(tmp_path):
  folder = tmp_path / "model"
  shutil.copytree(FAMILIES / "llama", folder)
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  tensors["model.norm.weight"] = np.zeros(31, np.float32)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  with pytest.raises(files.DataError, match=r"model.norm.weight has the shape \[31\].*\[32\]"):
    _load(folder)


def test_a_model_that_no_family_has_is_not_written():
  with pytest.raises(files.DataError, match="model.mlp is 'relu2'"):
    hugging_face.config_of(Model(vocab_size=64, mlp="relu2"))
