"""Tokenizers without TensorFlow: one small protocol, five formats.

Text in data is always ordinary text: the literal `<|endoftext|>` inside a document never becomes a
special id. Padding carries no loss weight anywhere, so a tokenizer without a pad id pads with 0.
"""

import gzip
import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from synthjax import files
from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.worlds import shop


class Tokenizer(Protocol):
  """Text <-> token ids; `encode` adds no special tokens."""

  size: int  # ids are 0..size-1
  eos_id: int  # ends a document
  pad_id: int  # fills sequences; never predicted
  fingerprint: str  # hash of what defines it; checkpoints keep it

  def encode(self, text: str) -> list[int]: ...
  def decode(self, ids: Iterable[int]) -> str: ...


class TokenizerInfo(NamedTuple):
  """What training needs to know of a tokenizer."""

  size: int  # ids are 0..size-1
  fingerprint: str


def info(tokenizer: Tokenizer) -> TokenizerInfo:
  return TokenizerInfo(tokenizer.size, tokenizer.fingerprint)


class Words:
  """Whole words between single spaces (a space at either end is no token); id 0 pads, id 1 ends."""

  def __init__(self, words: list[str]):
    self._words = ["<pad>", "<eos>", *words]
    self._ids = {word: i for i, word in enumerate(self._words)}
    self.size, self.pad_id, self.eos_id = len(self._words), 0, 1
    self.fingerprint = files.value_hash(["words", *self._words])

  def encode(self, text: str) -> list[int]:
    """Raises DataError naming a word that it does not know."""
    text = text.strip(" ")
    pieces = text.split(" ") if text else []
    for position, word in enumerate(pieces):
      if self._ids.get(word, 0) < 2:
        raise files.DataError(
          f"word {position} of {text[:80]!r} is {word!r}, which this word-level tokenizer does not "
          "know"
        )
    return [self._ids[word] for word in pieces]

  def decode(self, ids: Iterable[int]) -> str:
    return " ".join(self._words[i] for i in ids if i > 1)


class Bytes:
  """UTF-8 bytes; 256 pads, 257 ends."""

  def __init__(self):
    self.size, self.pad_id, self.eos_id = 258, 256, 257
    self.fingerprint = files.value_hash(["bytes"])

  def encode(self, text: str) -> list[int]:
    return list(text.encode())

  def decode(self, ids: Iterable[int]) -> str:
    return bytes(i for i in ids if i < 256).decode(errors="replace")


class SentencePiece:
  """A SentencePiece model file. Those trained here round-trip any text; others may normalise it."""

  def __init__(self, path: files.Path):
    import sentencepiece

    data = _read(path)
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as e:
      raise files.DataError(f"{path}: not a SentencePiece model ({e})") from e
    self.size = self._model.vocab_size()
    self.eos_id = self._model.eos_id()
    # A model without a pad id says -1.
    self.pad_id = max(self._model.pad_id(), 0)
    self.fingerprint = hashlib.sha256(data).hexdigest()

  def encode(self, text: str) -> list[int]:
    return self._model.encode(text)

  def decode(self, ids: Iterable[int]) -> str:
    return self._model.decode([int(i) for i in ids])


def train_sentencepiece(texts: Iterable[str], path: files.Path, size: int) -> None:
  """Trains a SentencePiece model that round-trips any text exactly, and writes it atomically.

  Text is not normalised, unknown characters become bytes, and digits are pieces of their own.

  Raises:
    DataError: the texts do not support that many pieces.
  """
  import io

  import sentencepiece

  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      vocab_size=size,
      model_type="bpe",
      byte_fallback=True,
      split_digits=True,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      character_coverage=1.0,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      # So that a newline is one piece, whatever follows it.
      user_defined_symbols=["\n"],
      # The default of 4,192 bytes leaves longer documents out in silence.
      max_sentence_length=1 << 20,
      # The same model on any number of cores.
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as e:
    raise files.DataError(
      f"a SentencePiece model of {size} pieces cannot be trained on these texts ({e}); "
      "change config.data.tokenizer.vocab_size"
    ) from e
  with files.replacing(path, "wb") as f:
    f.write(model.getvalue())


class HuggingFace:
  """A `tokenizer.json` (or `.json.gz`), or GPT-2's pair of files, by the `tokenizers` package."""

  def __init__(self, model, eos: str, fingerprint: str):
    self._model = model
    self._model.encode_special_tokens = True  # special tokens written in a text are text
    self.fingerprint = fingerprint
    self.size = model.get_vocab_size(with_added_tokens=True)
    self.eos_id = model.token_to_id(eos)
    self.pad_id = 0

  def encode(self, text: str) -> list[int]:
    return self._model.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    return self._model.decode([int(i) for i in ids], skip_special_tokens=False)


def _hugging_face(cfg: schema.Tokenizer) -> HuggingFace:
  import tokenizers

  path = pathlib.Path(cfg.path)
  data = _read(path)
  try:
    model = tokenizers.Tokenizer.from_str(data.decode())
  except Exception as e:
    raise files.DataError(f"{path}: not a tokenizer.json ({e})") from e
  eos = cfg.eos or _declared_eos(path.parent / "tokenizer_config.json")
  if model.token_to_id(eos) is None:
    special = [t.content for t in model.get_added_tokens_decoder().values() if t.special]
    raise files.DataError(
      f"{path}: end-of-text token {eos!r} is not in it; set config.data.tokenizer.eos to one of "
      f"{', '.join(map(repr, special[:20]))}"
    )
  return HuggingFace(model, eos, hashlib.sha256(data + eos.encode()).hexdigest())


def _declared_eos(path: pathlib.Path) -> str:
  if not path.exists():
    return ""
  declared = files.read_json(path).get("eos_token") or ""
  # Some files have the text, others an object of it and its flags.
  if isinstance(declared, str):
    return declared
  return declared.get("content", "")


def _gpt2(cfg: schema.Tokenizer) -> HuggingFace:
  import tokenizers

  folder = pathlib.Path(cfg.path)
  encoder, merges = _read(folder / "encoder.json"), _read(folder / "vocab.bpe")
  pairs: list[tuple[str, str]] = []
  for line in merges.decode().splitlines()[1:]:  # the first line is a version
    if line:
      left, right = line.split(" ")
      pairs.append((left, right))
  model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=json.loads(encoder), merges=pairs))
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  return HuggingFace(model, "<|endoftext|>", hashlib.sha256(encoder + merges).hexdigest())


def load(cfg: schema.Tokenizer, world: World) -> Tokenizer:
  """The tokenizer of a config.

  Raises:
    DataError: its files are missing, or are no tokenizer of that kind.
  """
  match cfg.kind:
    case "world":
      return Words(shop.vocabulary(world))
    case "bytes":
      return Bytes()
    case "sentencepiece":
      return SentencePiece(cfg.path)
    case "hf":
      return _hugging_face(cfg)
    case "gpt2":
      return _gpt2(cfg)
  raise KeyError(cfg.kind)


def _read(path: files.Path) -> bytes:
  path = pathlib.Path(path)
  if not path.is_file():
    raise files.DataError(f"{path}: no such tokenizer file; set config.data.tokenizer.path")
  content = path.read_bytes()
  if path.suffix == ".gz":
    return gzip.decompress(content)
  return content
