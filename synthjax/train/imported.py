"""Models of Hugging Face's format in and out of our checkpoints."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from synthjax import files
from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.data import tokenizers
from synthjax.model import hugging_face
from synthjax.model.transformer import Params, Transformer

_BESIDE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def import_folder(source: files.Path, to: files.Path, eos: str = "") -> list[str]:
  """Writes a checkpoint of step 0, `model.json` and the tokenizer of a Hugging Face folder.

  The folder `to` appears whole or not at all.

  Args:
    source: holds config.json, safetensors and tokenizer.json.
    to: a new folder; `train.init` and `model` of a config can name it.
    eos: end-of-text token; "": the one that tokenizer_config.json names.

  Returns:
    KEY=VALUE settings of a config that uses the model.

  Raises:
    DataError: a file is missing or damaged, or asks for what the decoder does not have.
  """
  source, to = pathlib.Path(source), _empty(to)
  for name in ("config.json", "tokenizer.json"):
    if not (source / name).is_file():
      raise files.DataError(f"{source}: has no {name}; expected a Hugging Face model folder")
  config = files.read_json(source / "config.json")
  shape = hugging_face.model_of(config, source / "config.json")
  model = Transformer(shape)
  tokenizer_path = source / "tokenizer.json"
  tokenizer_config = schema.Tokenizer(kind="hf", path=str(tokenizer_path), eos=eos)
  tokenizer = tokenizers.load(tokenizer_config, World())
  if tokenizer.size > shape.vocab_size:
    raise files.DataError(
      f"{tokenizer_path}: has {tokenizer.size} ids; the model's vocab_size is {shape.vocab_size}"
    )
  hugging_face.check_all_known(shape, source)
  with _whole_or_not_at_all(to) as folder:
    params = hugging_face.read_params(model, hugging_face.reader(source))
    about = {"tokenizer": tokenizer.fingerprint, "imported": str(source)}
    ocp.save(folder / "0", {"params": params}, custom_metadata=about)
    files.write_json(folder / "model.json", dataclasses.asdict(shape))
    _copy_tokenizer(tokenizer_path, folder)
  settings = [f"model={to}", f"train.init={to}", "data.tokenizer.kind=hf"]
  settings.append(f"data.tokenizer.path={to / 'tokenizer.json'}")
  return settings + ([f"data.tokenizer.eos={eos!r}"] if eos else [])


def export_folder(
  to: files.Path,
  model: Transformer,
  params: Params,
  tokenizer: schema.Tokenizer,
  provenance: str,
  dtype: Any = np.float32,
) -> None:
  """Writes a folder that transformers loads: config, safetensors, tokenizer, README.

  The folder appears whole or not at all.

  Args:
    to: a new folder.
    model: its shape must be one of the families of `hugging_face`.
    params: of the model.
    tokenizer: the config's; copied where it is a tokenizer.json.
    provenance: a sentence for the README.
    dtype: of the tensors.

  Raises:
    DataError: `to` holds something, or no family has what the model has.
  """
  with _whole_or_not_at_all(_empty(to)) as folder:
    hugging_face.write(folder, model, jax.device_get(params), dtype)
    readme = f"# {pathlib.Path(to).name}\n\nWritten by synthjax: {provenance}\n"
    (folder / "README.md").write_text(readme, encoding="utf-8")
    if tokenizer.kind == "hf":
      _copy_tokenizer(pathlib.Path(tokenizer.path), folder)


def _empty(to: files.Path) -> pathlib.Path:
  """The absolute path of a new folder. Raises DataError where it holds something."""
  to = pathlib.Path(to).absolute()
  if to.exists() and any(to.iterdir()):
    raise files.DataError(f"{to}: holds something already; give a new folder")
  return to


@contextlib.contextmanager
def _whole_or_not_at_all(to: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to write in, which becomes `to` when all went well and vanishes when not."""
  partial = to.with_name(f"{to.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
  partial.mkdir(parents=True)
  try:
    yield partial
    if to.exists():
      to.rmdir()
    os.replace(partial, to)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _copy_tokenizer(path: pathlib.Path, to: pathlib.Path) -> None:
  """Copies a tokenizer.json, whatever its name is, and those of the files beside it that exist."""
  shutil.copyfile(path, to / "tokenizer.json")
  for name in _BESIDE_TOKENIZER:
    if (path.parent / name).is_file():
      shutil.copyfile(path.parent / name, to / name)
