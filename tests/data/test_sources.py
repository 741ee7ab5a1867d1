import dataclasses
import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from synthjax import config, files
from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.data import cache, documents, formats, sources, tokenizers
from synthjax.data.formats import Example

WORLD = World()


def _cache(source, to, split="train", tokenizer=None, **data):
  tokenizer = tokenizer or tokenizers.Bytes()
  data = schema.Data(**{"seq_len": 4096, "too_long": "drop", **data})
  corpus = sources.Corpus(source, data, WORLD, tokenizer)
  counts = cache.cache(corpus, split, to, say=lambda _: None)
  cached = documents.CachedDocuments(to)
  texts = [tokenizer.decode(record[1:]) for record in cached.read(range(len(cached)))]
  return counts, dict(zip(cached.ids(), texts)), cached


def test_real_math_drops_and_counts_the_rows_without_a_gold_answer(shared_data, tmp_path):
  counts, texts, _ = _cache(schema.Source("math"), tmp_path / "c", folder=str(shared_data))
  assert counts["dropped"] == {"no gold answer": 2}
  assert counts["documents"] + len(counts["too_long"]) == 7498
  row = next(files.read_jsonl(shared_data / "math/train.jsonl"))
  assert texts[row["unique_id"]] == f"Problem: {row['problem']}\nSolution: {row['solution']}"


def test_real_gsm8k_is_cached_whole_and_in_order(shared_data, tmp_path):
  counts, texts, cached = _cache(schema.Source("gsm8k"), tmp_path / "c", folder=str(shared_data))
  assert counts["documents"] == 7473 and counts["dropped"] == {} and counts["too_long"] == []
  assert list(texts)[:2] == ["gsm8k-train-0", "gsm8k-train-1"]
  assert "<<" not in "".join(texts.values())
  prompt, *tokens = cached.read([0])[0]
  assert bytes(tokens[:prompt]).endswith(b"\nAnswer:")


def test_text_corpora_are_read_as_jsonl_gzip_plain_text_and_by_glob(tmp_path):
  files.write_jsonl(
    tmp_path / "a.jsonl.gz", [{"id": "x", "text": "eins"}, {"id": "y", "text": " "}]
  )
  files.write_jsonl(tmp_path / "b.jsonl", [{"text": "zwei"}])
  (tmp_path / "c.txt").write_text("drei\n\nvier\n")
  counts, texts, _ = _cache(schema.Source("text", str(tmp_path / "*.*")), tmp_path / "cache")
  assert texts == {"x": "eins", "text-b-0": "zwei", "text-c-0": "drei", "text-c-1": "vier"}
  assert counts["dropped"] == {"empty text": 1}


def test_traces_from_anywhere_are_read_from_jsonl(tmp_path):
  files.write_jsonl(
    tmp_path / "t.jsonl",
    [{"id": 7, "inputs": "Q", "targets": " A", "answer": "A"}, {"inputs": "P", "targets": " B"}],
  )
  counts, texts, cached = _cache(
    schema.Source("traces", str(tmp_path / "t.jsonl"), count=1), tmp_path / "cache"
  )
  assert texts == {"7": "Q A"} and counts["target_tokens"] == 3
  assert cached.read([0])[0].tolist() == [1, ord("Q"), ord(" "), ord("A"), 257]


def test_rows_of_another_task_are_told_to_be_that():
  rows = [
    ({"question": "2 + 2?", "solution": "4", "answer": "4"}, "traces", "problems"),
    ({"inputs": "2 + 2?", "targets": " 4", "answer": "4"}, "problems", "traces"),
    ({"text": "Once"}, "traces", "text"),
  ]
  for row, said, meant in rows:
    with pytest.raises(
      files.DataError,
      match=rf"\(found fields: .*\); rows of .* are task '{meant}': set config.data.task",
    ):
      formats.parse(said, formats.RawRow(row, "own.jsonl", 1, "x"))


def test_own_problems_need_an_answer_and_for_training_a_solution(tmp_path):
  path = tmp_path / "own.jsonl"
  whole = {"question": "2 + 3?", "answer": 5, "solution": "2 + 3 = 5\n#### 5"}
  files.write_jsonl(path, [whole, {"id": "b", "question": "1 + 1?", "answer": "2"}])
  source = schema.Source("problems", str(path))
  train, test = (list(sources.read(source, WORLD, split, str(path))) for split in ("train", "test"))
  expected = ("Question: 2 + 3?\nAnswer:", " 2 + 3 = 5\n#### 5", "5", "", "2 + 3?")
  assert train[0] == Example("problems-own-0", *expected)
  assert train[1].id == "b"
  assert train[1].drop == "nothing to train on"
  assert [example.drop for example in test] == ["", ""]
  data = schema.Data(task="problems", train_path=str(path), test_path=str(path))
  assert sources.unusable(data, WORLD, "train") == {"nothing to train on": 1}
  assert sources.unusable(data, WORLD, "test") == {}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"answer": " "}, "field 'answer' is empty"),
    ({}, r"'answer' is None; expected a number \(found fields: question\)"),
    ({"answer": "2", "solution": 3}, "field 'solution' is 3; expected text"),
  ],
)
def test_a_field_of_an_own_problem_that_is_not_as_described_is_named(tmp_path, fields, message):
  path = tmp_path / "own.jsonl"
  files.write_jsonl(path, [{"question": "1 + 1?", **fields}])
  with pytest.raises(files.DataError, match=f"own.jsonl, row 1: .*{message}"):
    list(sources.read(schema.Source("problems", str(path)), WORLD, "train", str(path)))


def test_a_tfds_name_gives_the_rows_that_the_file_gives(tmp_path, monkeypatch, shared_data):
  import tensorflow_datasets as tfds

  rows = list(files.read_jsonl(shared_data / "gsm8k/train.jsonl", 20))
  features = tfds.features.FeaturesDict(
    {"question": tfds.features.Text(), "answer": tfds.features.Text()}
  )
  tfds.dataset_builders.store_as_tfds_dataset(
    name="small_gsm8k",
    version="1.0.0",
    features=features,
    split_datasets={"train": _as_tf(rows)},
    data_dir=str(tmp_path),
  )
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  _, texts, _ = _cache(schema.Source("gsm8k", "tfds:small_gsm8k"), tmp_path / "a")
  _, expected, _ = _cache(
    schema.Source("gsm8k", str(shared_data / "gsm8k/train.jsonl"), count=20), tmp_path / "b"
  )
  assert sorted(texts.values()) == sorted(expected.values())


def _as_tf(rows):
  import tensorflow as tf

  return tf.data.Dataset.from_tensor_slices(
    {key: [row[key] for row in rows] for key in ("question", "answer")}
  )


def test_an_unknown_tfds_name_is_one_readable_error():
  source = schema.Source("text", "tfds:no_such_set")
  message = "tfds:no_such_set: TensorFlow Datasets cannot give split 'train'"
  with pytest.raises(files.DataError, match=message):
    list(sources.read(source, WORLD, "train", source.path))


def test_a_malformed_line_comes_out_of_the_pipeline_with_file_and_line(tmp_path):
  (tmp_path / "t.jsonl").write_text('{"inputs": "Q", "targets": "A"}\n{"inputs": "Q", "tar\n')
  with pytest.raises(files.DataError, match=r"t\.jsonl, line 2: not JSON"):
    _cache(schema.Source("traces", str(tmp_path / "t.jsonl")), tmp_path / "cache")
  (tmp_path / "t.jsonl").write_text('{"inputs": "Q", "targets": "A"}\n{"inputs": "Q"}\n')
  with pytest.raises(
    files.DataError,
    match=r"t\.jsonl, row 2: field 'targets' is None; expected text \(found fields: inputs\)",
  ):
    _cache(schema.Source("traces", str(tmp_path / "t.jsonl")), tmp_path / "cache")


def test_a_missing_file_says_where_to_get_it(tmp_path):
  message = r"gsm8k/train.jsonl: no such file for the train split; .*SYNTHJAX_DATA"
  with pytest.raises(files.DataError, match=message):
    _cache(schema.Source("gsm8k"), tmp_path / "cache", folder=str(tmp_path))


def test_an_empty_file_is_named(tmp_path):
  (tmp_path / "t.txt").write_text("\n")
  with pytest.raises(files.DataError, match="gives no documents"):
    _cache(schema.Source("text", str(tmp_path / "t.txt")), tmp_path / "cache")


@pytest.mark.parametrize(("policy", "kept"), [("drop", 1), ("truncate", 2), ("split", 1 + 4)])
def test_what_is_too_long_is_counted_under_every_policy(tmp_path, policy, kept):
  (tmp_path / "t.txt").write_text("0123456789012345678901\nshort\n")
  counts, texts, _ = _cache(
    schema.Source("text", str(tmp_path / "t.txt")),
    tmp_path / "cache",
    seq_len=8,
    too_long=policy,
  )
  assert counts["too_long"] == ["text-t-0"] and len(texts) == kept


def test_a_split_document_predicts_every_token_exactly_once(tmp_path):
  text = "0123456789012345678901"
  (tmp_path / "t.txt").write_text(text + "\n")
  counts, _, cached = _cache(
    schema.Source("text", str(tmp_path / "t.txt")),
    tmp_path / "cache",
    seq_len=8,
    too_long="split",
  )
  predicted = np.concatenate([record[2:] for record in cached.read(range(len(cached)))])
  assert tokenizers.Bytes().decode(predicted) == text[1:] and counts["target_tokens"] == len(text)


def test_a_document_too_long_is_an_error_where_the_config_says_so(tmp_path):
  (tmp_path / "t.txt").write_text("0123456789\n")
  with pytest.raises(
    files.DataError,
    match="1 documents have more than data.seq_len=8 tokens, the first is text-t-0",
  ):
    _cache(
      schema.Source("text", str(tmp_path / "t.txt")),
      tmp_path / "cache",
      seq_len=8,
      too_long="error",
    )


def test_a_second_cache_is_a_no_op_that_imports_neither_tensorflow_nor_beam(tmp_path):
  command = """
import json, sys
from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.data import cache, sources, tokenizers
world, data = World(), schema.Data()
tokenizer = tokenizers.load(data.tokenizer, world)
corpus = sources.Corpus(schema.Source(count=50), data, world, tokenizer)
counts = cache.cache(corpus, "train", sys.argv[1], say=lambda _: None)
print(json.dumps([counts, "tensorflow" in sys.modules or "apache_beam" in sys.modules]))
"""

  def run():
    arguments = [sys.executable, "-c", command, str(tmp_path / "c")]
    finished = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])

  (first, first_imported), (second, second_imported) = run(), run()
  assert first == second
  assert first_imported
  assert not second_imported


def test_a_cache_follows_its_inputs(tmp_path):
  path = tmp_path / "t.txt"
  for text in ("one\n", "one\ntwo\n"):
    path.write_text(text)
    counts, _, _ = _cache(schema.Source("text", str(path)), tmp_path / "cache")
  assert counts["documents"] == 2
  assert (
    _cache(schema.Source("text", str(path)), tmp_path / "cache", seq_len=64)[0]["documents"] == 2
  )


def test_a_mixture_names_its_parts_and_needs_steps():
  spec = [
    "data.mixture=({'task': 'world', 'rate': 3.0}, {'task': 'world', 'traces': 'clean'})",
    "train.steps=10",
  ]
  experiment = config.load("configs/world_sft.py", spec)
  assert [source.rate for source in sources.of_split(experiment.data, "train")] == [3.0, 1.0]
  with pytest.raises(
    config.ConfigError, match="train.steps is 0; expected above 0 with data.mixture"
  ):
    config.load("configs/world_sft.py", spec[:1])
  with pytest.raises(config.ConfigError, match=r"data.mixture\[0\].rate is 0"):
    config.load("configs/world_sft.py", ["data.mixture=({'rate': 0},)", "train.steps=10"])


def test_gzip_that_is_cut_off_is_named(tmp_path):
  path = tmp_path / "t.jsonl.gz"
  path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
  with pytest.raises(files.DataError, match=r"t\.jsonl\.gz: unreadable after line"):
    _cache(schema.Source("text", str(path)), tmp_path / "cache")


def test_the_worlds_fingerprint_follows_its_knobs():
  data, source = schema.Data(), schema.Source(count=5)
  other = dataclasses.replace(WORLD, leap=0.0)
  assert sources.fingerprint(source, data, WORLD, "train") != sources.fingerprint(
    source, data, other, "train"
  )
