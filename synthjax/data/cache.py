"""Caching: a seqio task, tokenised by Apache Beam, becomes ArrayRecord files that training reads by index.

A cache folder holds `*.array_record` (records as in `documents.py`), `lengths.npy`, `ids.txt` and, last of all, `manifest.json`.
"""

import functools
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from synthjax import __version__, files, schema
from synthjax.data import documents
from synthjax.data.tokenizers import Tokenizer
from synthjax.generate.worlds import shop

_BLOCK = 65_536  # examples a file


def cache(data: schema.Data, world: shop.World, tokenizer: Tokenizer, split: str, folder: files.Path,
          runner: str = "", say: Callable[[str], None] = print) -> dict:
  """Tokenises a split of the config's task into `folder`, unless it holds that already. Returns the manifest.

  Args:
    data: task, its files and row length (a document longer than a row follows `data.too_long`).
    world: of the embedded world's task.
    tokenizer: how text becomes tokens.
    split: `train` or `test`.
    folder: the cache's own folder.
    runner: name of a Beam runner; "" runs in this process.
    say: prints a line.

  Raises:
    DataError: bad input, named by file and line, or a document too long under `data.too_long="error"`.
  """
  folder = pathlib.Path(folder)
  examples = documents.examples(data, world, split)
  inputs = files.value_hash([tokenizer.fingerprint, data.row_length, data.too_long, *map(list, examples)])
  if (folder / "manifest.json").exists():
    manifest = files.read_json(folder / "manifest.json")
    if manifest["inputs"] == inputs:
      say(f"{folder}: cached already, {manifest['documents']:,} documents, {manifest['tokens']:,} tokens")
      return manifest
    say(f"{folder}: the examples, the tokenizer or the row length changed; caching again")
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  start = time.monotonic()
  _run_pipeline(f"synthjax_{data.task}_{inputs[:12]}", data, world, tokenizer, split, folder, runner)
  blocks = [files.read_json(p) for p in sorted(folder.glob("*.block.json"))]
  ids = [i for block in blocks for i in block["ids"]]
  lengths = np.array([n for block in blocks for n in block["lengths"]], np.int32)
  too_long = [i for block in blocks for i in block["too_long"]]
  if too_long and data.too_long == "error":
    raise files.DataError(f"{folder}: {len(too_long)} documents have more than data.row_length={data.row_length} tokens, the first is "
                          f"{too_long[0]}; raise data.row_length, or set data.too_long to 'drop' or 'truncate'")
  with files.replacing(folder / "lengths.npy", "wb") as f:
    np.save(f, lengths)
  with files.replacing(folder / "ids.txt") as f:
    f.writelines(f"{i}\n" for i in ids)
  counts = {"too_long": len(too_long), "too_long_policy": data.too_long, "too_long_ids": too_long[:20]}
  manifest = {
    "task": data.task, "split": split, "inputs": inputs, "tokenizer": tokenizer.fingerprint, "documents": len(ids),
    "tokens": int(lengths.sum()), "target_tokens": sum(block["target_tokens"] for block in blocks),
    "longest": int(lengths.max(initial=0)), **counts, "seconds": round(time.monotonic() - start, 2), "version": __version__,
  }
  files.write_json(folder / "manifest.json", manifest)
  for path in folder.glob("*.block.json"):
    path.unlink()
  past = {"drop": "dropped", "truncate": "truncated"}.get(data.too_long)
  said = f"; {len(too_long)} were too long and {past}" if too_long else ""
  say(f"{folder}: {len(ids):,} documents, {manifest['tokens']:,} tokens in {manifest['seconds']} s{said}")
  return manifest


def _run_pipeline(name, data, world, tokenizer, split, folder, runner) -> None:
  """seqio's Beam pipeline, then one ArrayRecord file a block of examples, in the order of the source."""
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions
  from apache_beam.runners.portability import fn_api_runner
  from seqio import beam_utils

  from synthjax.data import tasks

  task = tasks.register(name, data, world, tokenizer)
  shard, index = beam_utils.SOURCE_SHARD_ID_PROVENANCE_KEY, beam_utils.ID_WITHIN_SHARD_PROVENANCE_KEY
  write = functools.partial(_write_block, folder=str(folder.absolute()), eos_id=tokenizer.eos_id, row_length=data.row_length,
                            policy=data.too_long)

  def keyed(example):
    text, inputs, targets = (example[k].numpy() for k in ("id", "inputs", "targets"))
    row = (example[index], text.decode(), inputs, targets)
    return (example[shard], example[index] // _BLOCK), row

  # Beam's own in-process runner, asked for by name, may look for a Go binary to download; this one is pure Python.
  with beam.Pipeline(runner=runner or fn_api_runner.FnApiRunner(), options=PipelineOptions([])) as pipeline:
    examples = pipeline | beam_utils.PreprocessTask(task, split, add_provenance=True)
    _ = examples | beam.Map(keyed) | beam.GroupByKey() | beam.Map(write)


def _write_block(block, folder: str, eos_id: int, row_length: int, policy: str) -> None:
  """Writes one block's records in order, and beside them what the manifest needs to know. Written whole or not at all."""
  from array_record.python import array_record_module

  (shard, number), rows = block
  records: list[bytes] = []
  about: dict[str, Any] = {"ids": [], "lengths": [], "too_long": [], "target_tokens": 0}
  for _, identity, inputs, targets in sorted(rows, key=lambda row: row[0]):
    tokens = np.concatenate([inputs, targets, [eos_id]]).astype("<i4")
    if len(tokens) > row_length:
      about["too_long"].append(identity)
      if policy != "truncate":
        continue
      tokens = tokens[:row_length]
    prompt = min(len(inputs), len(tokens))
    records.append(np.concatenate([[prompt], tokens]).astype("<i4").tobytes())
    about["ids"].append(identity)
    about["lengths"].append(len(tokens))
    about["target_tokens"] += len(tokens) - prompt
  name = pathlib.Path(folder) / f"{shard:05d}-{number:05d}"
  scratch = f"{name}.writing"
  writer = array_record_module.ArrayRecordWriter(scratch, "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()
  os.replace(scratch, f"{name}.array_record")
  files.write_json(f"{name}.block.json", about)
