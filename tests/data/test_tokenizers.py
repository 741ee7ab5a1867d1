"""Every kind of tokenizer gives real texts back, and names a file that is not what it should be."""

import itertools
import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthjax import files
from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.data import tokenizers

WORLD = World()


def _load(kind, path="", eos=""):
  return tokenizers.load(schema.Tokenizer(kind=kind, path=str(path), eos=eos), WORLD)


@pytest.fixture(scope="module")
def real_texts(request):
  """A few thousand characters of each of the seven domains, and of GSM8K and MATH."""
  folder = pathlib.Path(
    os.environ.get("SYNTHJAX_DATA") or pathlib.Path(__file__).parents[3] / "shared/data"
  )
  if not folder.is_dir():
    pytest.skip(f"real data is not here: {folder}")
  texts = []
  for path in sorted(folder.glob("text/*.jsonl.gz")):
    texts += [row["text"][:3000] for row in itertools.islice(files.read_jsonl(path), 5)]
  texts += [row["solution"] for row in files.read_jsonl(folder / "math/train.jsonl", 50)]
  return texts + [
    row["question"] + row["answer"] for row in files.read_jsonl(folder / "gsm8k/train.jsonl", 50)
  ]


@pytest.mark.parametrize("name", ["bytes", "trained", "dolma2", "deepseek", "gpt2"])
def test_real_texts_come_back_unchanged(name, real_texts, shared_data, tmp_path):
  assert len(real_texts) > 100
  if name == "trained":
    tokenizers.train_sentencepiece(real_texts, tmp_path / "m.model", 1000)
  home = shared_data / "tokenizers"
  arguments = {
    "bytes": ("bytes",),
    "trained": ("sentencepiece", tmp_path / "m.model"),
    "dolma2": ("hf", home / "dolma2/tokenizer.json", "<|endoftext|>"),
    "deepseek": ("hf", home / "deepseek_r1/tokenizer.json.gz"),
    "gpt2": ("gpt2", home / "gpt2"),
  }
  tokenizer = _load(*arguments[name])
  for text in real_texts:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert max(ids, default=0) < tokenizer.size
    assert tokenizer.eos_id not in ids


@pytest.mark.parametrize(
  ("kind", "path", "special"),
  [
    ("hf", "dolma2/tokenizer.json", "<|endoftext|>"),
    ("hf", "deepseek_r1/tokenizer.json.gz", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    ("gpt2", "gpt2", "<|endoftext|>"),
  ],
)
def test_a_special_token_written_in_a_text_is_text(kind, path, special, shared_data):
  tokenizer = _load(kind, shared_data / "tokenizers" / path, special if kind == "hf" else "")
  ids = tokenizer.encode(f"a{special}b")
  assert tokenizer.eos_id not in ids and tokenizer.decode(ids) == f"a{special}b"


@given(st.text())
def test_bytes_take_any_text(text):
  tokenizer = tokenizers.Bytes()
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_models_of_others_load(shared_data):
  for name in ("test_model.model", "seqio_test.model"):
    tokenizer = _load("sentencepiece", shared_data / "tokenizers/sentencepiece" / name)
    assert tokenizer.decode(tokenizer.encode("that is a test")) == "that is a test"


@pytest.mark.parametrize(
  ("kind", "content", "message"),
  [
    ("hf", "{}", "not a tokenizer.json"),
    ("sentencepiece", "nonsense", "not a SentencePiece model"),
    ("hf", None, "no such tokenizer file"),
  ],
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, kind, content, message):
  path = tmp_path / "tokenizer.json"
  if content is not None:
    path.write_text(content)
  with pytest.raises(files.DataError, match=rf"tokenizer\.json: {message}"):
    _load(kind, path)


def test_an_unknown_end_of_text_token_lists_the_known_ones(shared_data):
  with pytest.raises(
    files.DataError,
    match=r"'</s>' is not in it; set config.data.tokenizer.eos to one of .*<\|endoftext\|>",
  ):
    _load("hf", shared_data / "tokenizers/dolma2/tokenizer.json", "</s>")


def test_a_word_that_the_world_does_not_know_is_named():
  with pytest.raises(files.DataError, match="word 1 of 'A zebra' is 'zebra'"):
    _load("world").encode("A zebra")


def test_too_many_pieces_for_the_texts_is_said(tmp_path):
  with pytest.raises(files.DataError, match="5000 pieces cannot be trained on these texts"):
    tokenizers.train_sentencepiece(["a b c"], tmp_path / "m.model", 5000)
