"""Caching: a seqio task, tokenised by Apache Beam, becomes ArrayRecord files that training reads.

A cache folder is a stage: `*.array_record` (records as in `documents.py`), `lengths.npy`,
`ids.txt` and, last of all, `manifest.json`.
"""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from synthjax import files, progress, stages
from synthjax.data import sources
from synthjax.data.sources import Corpus

_BLOCK = 65_536  # examples per file


def cache(
  corpus: Corpus,
  split: str,
  folder: files.Path,
  runner: str = "",
  force: bool = False,
  say: Callable[[str], None] = progress.say,
) -> dict:
  """Tokenises a corpus into `folder`, unless it holds that already.

  Args:
    corpus: what is read, and how text becomes tokens. A document longer than `data.seq_len` is
      treated as `data.too_long` says.
    split: `train` or `test`.
    folder: the cache's own folder.
    runner: name of a Beam runner; "" runs in this process.
    force: cache again.
    say: prints a line.

  Returns:
    The counts: documents, tokens, dropped, too long.

  Raises:
    DataError: bad input, named by file and line; nothing to cache; or a document too long under
      `data.too_long="error"`.
  """
  data = corpus.data
  inputs = [
    corpus.tokenizer.fingerprint,
    data.seq_len,
    data.too_long,
    sources.fingerprint(corpus.source, data, corpus.world, split),
  ]
  # Only where there are some: caches made before documents could be left out stay valid.
  if corpus.left_out:
    inputs.append(sorted(corpus.left_out))

  def work(folder: pathlib.Path) -> dict:
    for leftover in folder.glob("*-*.*"):
      leftover.unlink()
    with progress.foreign(folder / "libraries.log"):
      _run_pipeline(corpus, split, folder, runner)
    return {**_finish(folder, corpus), "tokenizer": corpus.tokenizer.fingerprint}

  counts = stages.run(folder, inputs, work, force, say)
  say(_describe(counts, folder, data.too_long))
  return counts


def _describe(counts: dict, folder: files.Path, policy: str) -> str:
  unused = []
  if counts["too_long"]:
    unused.append(f"{len(counts['too_long'])} longer than a sequence ({policy})")
  unused += [f"{n} {reason}" for reason, n in counts["dropped"].items() if n]
  line = f"{folder}: {counts['documents']:,} documents, {counts['tokens']:,} tokens"
  if not unused:
    return line
  return f"{line}; {', '.join(unused)}"


def _finish(folder: pathlib.Path, corpus: Corpus) -> dict:
  """Merges what the blocks report into one index and its counts."""
  blocks = [files.read_json(path) for path in sorted(folder.glob("*.block.json"))]
  ids: list[str] = []
  lengths: list[int] = []
  too_long: list[str] = []
  dropped: collections.Counter[str] = collections.Counter()
  for block in blocks:
    ids += block["ids"]
    lengths += block["lengths"]
    too_long += block["too_long"]
    dropped += collections.Counter(block["dropped"])
  _check_counts(folder, corpus, ids, too_long, dropped)
  with files.replacing(folder / "lengths.npy", "wb") as f:
    np.save(f, np.array(lengths, np.int32))
  with files.replacing(folder / "ids.txt") as f:
    f.writelines(f"{i}\n" for i in ids)
  for path in folder.glob("*.block.json"):
    path.unlink()
  return {
    "documents": len(ids),
    "tokens": sum(lengths),
    "target_tokens": sum(block["target_tokens"] for block in blocks),
    "longest": max(lengths),
    "too_long": too_long,
    "dropped": dict(dropped),
  }


def _check_counts(
  folder: pathlib.Path,
  corpus: Corpus,
  ids: list[str],
  too_long: list[str],
  dropped: collections.Counter[str],
) -> None:
  if too_long and corpus.data.too_long == "error":
    raise files.DataError(
      f"{folder}: {len(too_long)} documents have more than data.seq_len={corpus.data.seq_len} "
      f"tokens, the first is {too_long[0]}; raise data.seq_len, or set data.too_long to 'drop', "
      "'truncate' or 'split'"
    )
  if not ids:
    source = corpus.source
    raise files.DataError(
      f"{folder}: task {source.task!r} ({source.path or 'default files'}) gives no documents; "
      f"dropped: {dict(dropped)}, longer than a row: {len(too_long)}"
    )


class _Tokenised(NamedTuple):
  """A tokenised example, and its place in the source."""

  position: int
  id: str
  drop: str
  inputs: np.ndarray
  targets: np.ndarray


def _run_pipeline(corpus: Corpus, split: str, folder: pathlib.Path, runner: str) -> None:
  """seqio's Beam pipeline, then one ArrayRecord file per block of examples, in source order."""
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions
  from apache_beam.runners.portability import fn_api_runner
  from seqio import beam_utils

  from synthjax.data import tasks

  # Two caches of one process need tasks of their own.
  name = f"synthjax_{files.value_hash(str(folder.absolute()))[:16]}"
  errors = folder / "error.json"
  shard_key = beam_utils.SOURCE_SHARD_ID_PROVENANCE_KEY
  index_key = beam_utils.ID_WITHIN_SHARD_PROVENANCE_KEY

  def keyed(example):
    document = _Tokenised(
      position=example[index_key],
      id=example["id"].numpy().decode(),
      drop=example["drop"].numpy().decode(),
      inputs=example["inputs"].numpy(),
      targets=example["targets"].numpy(),
    )
    return (example[shard_key], document.position // _BLOCK), document

  preprocess = beam_utils.PreprocessTask(
    tasks.register(name, corpus, errors),
    split,
    add_provenance=True,
    # A remote worker registers the task for itself.
    setup_fn=functools.partial(tasks.register, name, corpus, errors),
  )
  write = functools.partial(
    _write_block,
    folder=str(folder.absolute()),
    eos_id=corpus.tokenizer.eos_id,
    seq_len=corpus.data.seq_len,
    policy=corpus.data.too_long,
  )
  # Beam's own in-process runner, asked for by name, may look for a Go binary to download; this one
  # is pure Python.
  chosen = runner or fn_api_runner.FnApiRunner()
  try:
    with beam.Pipeline(runner=chosen, options=PipelineOptions([])) as pipeline:
      _ = pipeline | preprocess | beam.Map(keyed) | beam.GroupByKey() | beam.Map(write)
  except Exception as e:
    if errors.exists():
      raise files.DataError(files.read_json(errors)) from e
    raise


def _write_block(block, folder: str, eos_id: int, seq_len: int, policy: str) -> None:
  """Writes one block's records in order, and beside them what the manifest needs to know.

  A block is written whole or not at all: Beam may call this again for one that failed.
  """
  from array_record.python import array_record_module

  (shard, number), documents = block
  in_order = sorted(documents, key=lambda document: document.position)
  records, report = _records(in_order, eos_id, seq_len, policy)
  name = pathlib.Path(folder) / f"{shard:05d}-{number:05d}"
  scratch = f"{name}.writing"
  # One record per group and no compression: a quarter faster to read.
  writer = array_record_module.ArrayRecordWriter(scratch, "group_size:1,uncompressed")
  for record in records:
    writer.write(record)
  writer.close()
  os.replace(scratch, f"{name}.array_record")
  files.write_json(f"{name}.block.json", report)


def _records(
  documents: Iterable[_Tokenised], eos_id: int, seq_len: int, policy: str
) -> tuple[list[bytes], dict[str, Any]]:
  """The records of a block, and the report beside them."""
  records: list[bytes] = []
  report: dict[str, Any] = {
    "ids": [],
    "lengths": [],
    "too_long": [],
    "target_tokens": 0,
    "dropped": collections.Counter(),
  }
  for document in documents:
    # `ids.txt` holds one id per line.
    identity = document.id.replace("\n", " ")
    if document.drop:
      report["dropped"][document.drop] += 1
      continue
    tokens = np.concatenate([document.inputs, document.targets, [eos_id]]).astype("<i4")
    if len(tokens) > seq_len:
      report["too_long"].append(identity)
    for piece in _pieces(_Piece(identity, len(document.inputs), tokens), seq_len, policy):
      record = np.concatenate([[piece.prompt_length], piece.tokens])
      records.append(record.astype("<i4").tobytes())
      report["ids"].append(piece.id)
      report["lengths"].append(len(piece.tokens))
      # The first token of a sequence is predicted from nothing: it is no target.
      report["target_tokens"] += len(piece.tokens) - max(piece.prompt_length, 1)
  return records, report


class _Piece(NamedTuple):
  """A document, or the part of it that one sequence holds."""

  id: str
  prompt_length: int
  tokens: np.ndarray


def _pieces(whole: _Piece, seq_len: int, policy: str) -> Iterator[_Piece]:
  """What is kept of a document: all of it where it fits a sequence."""
  identity, prompt_length, tokens = whole
  if len(tokens) <= seq_len:
    yield whole
  elif policy == "truncate":
    yield _Piece(identity, min(prompt_length, seq_len), tokens[:seq_len])
  elif policy == "split":
    # A piece begins with the last token of the one before it, so that every token is predicted
    # exactly once.
    for number, start in enumerate(range(0, len(tokens) - 1, seq_len - 1)):
      piece = tokens[start : start + seq_len]
      left_of_prompt = min(max(prompt_length - start, 0), len(piece))
      yield _Piece(f"{identity}#{number}", left_of_prompt, piece)
