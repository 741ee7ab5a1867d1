"""Caching: a seqio task, tokenised by Apache Beam, becomes ArrayRecord files that training reads by index.

A cache folder is a stage: `*.array_record` (records as in `documents.py`), `lengths.npy`, `ids.txt` and, last of all, `manifest.json`.
"""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from synthjax import files, progress, stages
from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.data import sources
from synthjax.data.tokenizers import Tokenizer

_BLOCK = 65_536  # examples a file


def cache(
  source: schema.Source,
  data: schema.Data,
  world: World,
  split: str,
  tokenizer: Tokenizer,
  folder: files.Path,
  runner: str = "",
  force: bool = False,
  say: Callable[[str], None] = progress.say,
  left_out: frozenset[str] = frozenset(),
) -> dict:
  """Tokenises a source into `folder`, unless it holds that already. Returns the counts: documents, tokens, dropped, too long.

  Args:
    source: what is read.
    data: where files lie, and the row length (a document longer than a row follows `data.too_long`).
    world: of the embedded world's task.
    split: `train` or `test`.
    tokenizer: how text becomes tokens.
    folder: the cache's own folder.
    runner: name of a Beam runner; "" runs in this process.
    force: cache again.
    say: prints a line.
    left_out: ids of documents that are counted as dropped instead.

  Raises:
    DataError: bad input, named by file and line; nothing to cache; or a document too long under `data.too_long="error"`.
  """
  inputs = [
    tokenizer.fingerprint,
    data.seq_len,
    data.too_long,
    sources.fingerprint(source, data, world, split),
  ]
  if left_out:
    inputs.append(sorted(left_out))

  def work(folder: pathlib.Path) -> dict:
    for leftover in folder.glob("*-*.*"):
      leftover.unlink()
    with progress.foreign(folder / "libraries.log"):
      _run_pipeline((source, data, world, split), tokenizer, folder, runner, left_out)
    return {**_finish(folder, source, data), "tokenizer": tokenizer.fingerprint}

  counts = stages.run(folder, inputs, work, force, say)
  out = {"too_long": len(counts["too_long"]), **counts["dropped"]}
  unused = ", ".join(f"{n} {reason}" for reason, n in out.items() if n)
  say(
    f"{folder}: {counts['documents']:,} documents, {counts['tokens']:,} tokens"
    + (f"; {unused.replace('too_long', f'longer than a row ({data.too_long})')}" if unused else "")
  )
  return counts


def _finish(folder, source, data) -> dict:
  """Gathers what the blocks tell into one index and its counts."""
  blocks = [files.read_json(path) for path in sorted(folder.glob("*.block.json"))]
  ids = [i for block in blocks for i in block["ids"]]
  lengths = np.array([n for block in blocks for n in block["lengths"]], np.int32)
  too_long = [i for block in blocks for i in block["too_long"]]
  dropped = sum((collections.Counter(block["dropped"]) for block in blocks), collections.Counter())
  if too_long and data.too_long == "error":
    raise files.DataError(
      f"{folder}: {len(too_long)} documents have more than data.seq_len={data.seq_len} tokens, the first is "
      f"{too_long[0]}; raise data.seq_len, or set data.too_long to 'drop', 'truncate' or 'split'"
    )
  if not ids:
    raise files.DataError(
      f"{folder}: task {source.task!r} ({source.path or 'default files'}) gives no documents; "
      f"dropped: {dict(dropped)}, longer than a row: {len(too_long)}"
    )
  with files.replacing(folder / "lengths.npy", "wb") as f:
    np.save(f, lengths)
  with files.replacing(folder / "ids.txt") as f:
    f.writelines(f"{i}\n" for i in ids)
  for path in folder.glob("*.block.json"):
    path.unlink()
  return {
    "documents": len(ids),
    "tokens": int(lengths.sum()),
    "target_tokens": sum(block["target_tokens"] for block in blocks),
    "longest": int(lengths.max()),
    "too_long": too_long,
    "dropped": dict(dropped),
  }


def _run_pipeline(made_of, tokenizer, folder, runner, left_out) -> None:
  """seqio's Beam pipeline, then one ArrayRecord file a block of examples, in the order of the source."""
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions
  from apache_beam.runners.portability import fn_api_runner
  from seqio import beam_utils

  from synthjax.data import tasks

  source, data, world, split = made_of
  name, errors = f"synthjax_{files.value_hash(str(folder.absolute()))[:16]}", folder / "error.json"
  task = tasks.register(name, source, data, world, tokenizer, errors, left_out)
  shard, index = (
    beam_utils.SOURCE_SHARD_ID_PROVENANCE_KEY,
    beam_utils.ID_WITHIN_SHARD_PROVENANCE_KEY,
  )
  write = functools.partial(
    _write_block,
    folder=str(folder.absolute()),
    eos_id=tokenizer.eos_id,
    seq_len=data.seq_len,
    policy=data.too_long,
  )

  def keyed(example):
    identity, drop, inputs, targets = (
      example[k].numpy() for k in ("id", "drop", "inputs", "targets")
    )
    row = (example[index], identity.decode(), drop.decode(), inputs, targets)
    return (example[shard], example[index] // _BLOCK), row

  preprocess = beam_utils.PreprocessTask(  # a remote worker registers the task for itself
    task,
    split,
    add_provenance=True,
    setup_fn=functools.partial(
      tasks.register, name, source, data, world, tokenizer, errors, left_out
    ),
  )
  try:
    # Beam's own in-process runner, asked for by name, may look for a Go binary to download; this one is pure Python.
    with beam.Pipeline(
      runner=runner or fn_api_runner.FnApiRunner(), options=PipelineOptions([])
    ) as pipeline:
      _ = pipeline | preprocess | beam.Map(keyed) | beam.GroupByKey() | beam.Map(write)
  except Exception as e:
    if errors.exists():
      raise files.DataError(files.read_json(errors)) from e
    raise


def _write_block(block, folder: str, eos_id: int, seq_len: int, policy: str) -> None:
  """Writes one block's records in order, and beside them what the manifest needs to know. Written whole or not at all."""
  from array_record.python import array_record_module

  (shard, number), rows = block
  records: list[bytes] = []
  about: dict[str, Any] = {
    "ids": [],
    "lengths": [],
    "too_long": [],
    "target_tokens": 0,
    "dropped": collections.Counter(),
  }
  for _, identity, drop, inputs, targets in sorted(rows, key=lambda row: row[0]):
    identity = identity.replace("\n", " ")
    if drop:
      about["dropped"][drop] += 1
      continue
    document = np.concatenate([inputs, targets, [eos_id]]).astype("<i4")
    if len(document) > seq_len:
      about["too_long"].append(identity)
    for piece_id, prompt, tokens in _pieces(identity, len(inputs), document, seq_len, policy):
      records.append(np.concatenate([[prompt], tokens]).astype("<i4").tobytes())
      about["ids"].append(piece_id)
      about["lengths"].append(len(tokens))
      about["target_tokens"] += len(tokens) - max(prompt, 1)
  name = pathlib.Path(folder) / f"{shard:05d}-{number:05d}"
  scratch = f"{name}.writing"
  writer = array_record_module.ArrayRecordWriter(
    scratch, "group_size:1,uncompressed"
  )  # a quarter faster to read
  for record in records:
    writer.write(record)
  writer.close()
  os.replace(scratch, f"{name}.array_record")
  files.write_json(f"{name}.block.json", about)


def _pieces(identity, prompt, tokens, seq_len, policy) -> Iterator[tuple[str, int, np.ndarray]]:
  """(id, prompt length, tokens) of what is kept of a document: all of it where it fits a row."""
  if len(tokens) <= seq_len:
    yield identity, prompt, tokens
  elif policy == "truncate":
    yield identity, min(prompt, seq_len), tokens[:seq_len]
  elif policy == "split":
    # A piece begins with the last token of the one before it, so that every token is predicted exactly once.
    for number, start in enumerate(range(0, len(tokens) - 1, seq_len - 1)):
      piece = tokens[start : start + seq_len]
      yield f"{identity}#{number}", min(max(prompt - start, 0), len(piece)), piece
