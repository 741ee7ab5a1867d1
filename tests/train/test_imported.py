"""`synthjax import` and `export --format hf`, from the command line to the same parameters."""

import pathlib
import shutil

import jax
import pytest
import safetensors.numpy
import tokenizers

from synthjax import __main__, config, files, job
from synthjax.config import schema
from synthjax.train import imported

FAMILIES = pathlib.Path(__file__).parents[1] / "model/families"


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
  """A tiny Llama with a byte-level tokenizer of its 96 ids."""
  folder = tmp_path / "source"
  shutil.copytree(FAMILIES / "llama", folder)
  vocabulary = {chr(33 + i): i for i in range(94)} | {"<end>": 94}
  model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
  model.add_special_tokens(["<end>"])
  model.save(str(folder / "tokenizer.json"))
  files.write_json(folder / "tokenizer_config.json", {"eos_token": "<end>"})
  return folder


def test_an_imported_model_is_a_start_of_training_and_goes_out_again(source, tmp_path, capsys):
  folder, out = tmp_path / "imported", tmp_path / "out"
  assert __main__.main(["import", "--from", str(source), "--to", str(folder)]) == 0
  shown = capsys.readouterr().out.splitlines()
  settings = [line.split("--config.")[1] for line in shown if line.startswith("  --config.")]
  assert len(settings) == 4
  spec = tmp_path / "mine.py"
  spec.write_text(
    "import ml_collections\n"
    "def get_config():\n"
    "  return ml_collections.ConfigDict({'name': 'mine', 'data': {'task': 'gsm8k'}})\n"
  )
  experiment = config.load(str(spec), settings)
  opened = job.Job(experiment, tmp_path / "work")
  policy = job.load_policy(experiment, job.tokenizer_of(opened), experiment.train.init)
  model, params = policy[0], policy[1]
  imported.export_folder(out, model, params, experiment.data.tokenizer, "a test")
  again = tmp_path / "again"
  imported.import_folder(out, again)
  same = job.load_policy(experiment, job.tokenizer_of(opened), str(again))[1]
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, same))
  assert "Written by synthjax: a test" in (out / "README.md").read_text()


@pytest.mark.parametrize("lost", ["tokenizer.json", "config.json", "model.safetensors"])
def test_nothing_is_left_half_imported(source, tmp_path, lost):
  (source / lost).unlink()
  with pytest.raises(files.DataError):
    imported.import_folder(source, tmp_path / "imported")
  assert not list(tmp_path.glob("imported*"))


def test_a_tensor_that_the_model_has_no_place_for_is_an_error(source, tmp_path):
  tensors = safetensors.numpy.load_file(source / "model.safetensors")
  tensors["model.layers.0.self_attn.o_proj.bias"] = tensors["model.norm.weight"]
  safetensors.numpy.save_file(tensors, source / "model.safetensors")
  with pytest.raises(files.DataError, match="o_proj.bias' is not one of the model"):
    imported.import_folder(source, tmp_path / "imported")


def test_a_folder_that_holds_something_is_left_alone(source, tmp_path):
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken/mine").write_text("")
  with pytest.raises(files.DataError, match="holds something already"):
    imported.import_folder(source, tmp_path / "taken")
  with pytest.raises(files.DataError, match="holds something already"):
    imported.export_folder(tmp_path / "taken", None, {}, schema.Tokenizer(), "")
