"""`synthjax bench data`: planned packing beside grain's and seqio's, and how fast rows come out of the loader."""

import pathlib
import random
import tempfile
import time
from collections.abc import Iterable

import grain
import numpy as np

from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.data import cache, documents, loader, packing, sources, tokenizers
from synthjax.worlds import shop

_ROW_LENGTH = 512


def run(seconds: float) -> None:
  """Prints tokens a core-second and fill of each way to pack documents with the lengths of GSM8K, and the loader's tokens a second."""
  lengths = np.clip(np.random.default_rng(0).gamma(5.0, 45.0, 20_000).astype(int), 20, _ROW_LENGTH)
  print(
    f"{len(lengths):,} documents of {lengths.mean():.0f} tokens on average into rows of {_ROW_LENGTH}; one core (process time)"
  )
  ours = _planned(lengths)
  _say("synthjax: plan and layout", *ours)
  for name, function in (
    ("grain FirstFitPackIterDataset", _grain),
    ("seqio trim_and_pack_dataset", _seqio),
  ):
    found = function(lengths[:4000])
    _say(f"{name} {_version(name.split()[0])}", *found, f"synthjax is {ours[0] / found[0]:.1f}x")
  _loader(seconds)


def _say(name, rate, fill, *more) -> None:
  print(
    f"  {name:45} {rate / 1e6:6.2f}M tokens a core-second, {100 * fill:.1f} % full  {' '.join(more)}"
  )


def _version(package: str) -> str:
  from importlib import metadata

  return metadata.version(package)


def _planned(lengths) -> tuple[float, float]:
  """Plan and layout together: what takes the place of packing in the loader."""
  records = [np.concatenate([[0], np.ones(n, np.int32)]).astype(np.int32) for n in lengths]
  began = time.process_time()
  plan = packing.pack(lengths, _ROW_LENGTH)
  for r in range(0, len(plan), 64):
    packing.layout(
      [[records[i] for i in plan.row(k)] for k in range(r, min(r + 64, len(plan)))], _ROW_LENGTH
    )
  return lengths.sum() / (time.process_time() - began), plan.fill


def _fill(rows: Iterable[int], total: int) -> float:
  return total / (sum(1 for _ in rows) * _ROW_LENGTH)


def _grain(lengths) -> tuple[float, float]:
  source = grain.MapDataset.source([{"tokens": np.ones(n, np.int32)} for n in lengths])
  dataset = grain.experimental.FirstFitPackIterDataset(
    source.to_iter_dataset(grain.ReadOptions(num_threads=0)),
    length_struct={"tokens": _ROW_LENGTH},
    num_packing_bins=64,
  )
  began = time.process_time()
  fill = _fill((1 for _ in dataset), lengths.sum())
  return lengths.sum() / (time.process_time() - began), fill


def _seqio(lengths) -> tuple[float, float]:
  import seqio
  import tensorflow as tf

  documents = [np.ones(n, np.int32) for n in lengths]
  dataset = tf.data.Dataset.from_generator(
    lambda: ({"tokens": d} for d in documents),
    output_signature={"tokens": tf.TensorSpec([None], tf.int32)},
  )
  packed = seqio.trim_and_pack_dataset(dataset, {"tokens": _ROW_LENGTH})
  options = tf.data.Options()
  options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
  began = time.process_time()
  fill = _fill((1 for _ in packed.with_options(options)), lengths.sum())
  return lengths.sum() / (time.process_time() - began), fill


def _loader(seconds) -> None:
  """From ArrayRecord to batches, for short documents (the world's) and long ones (text split at the row's end)."""
  world, tokenizer = World(), tokenizers.load(schema.Tokenizer(), World())
  with tempfile.TemporaryDirectory() as folder:
    text = pathlib.Path(folder) / "text.txt"
    text.write_text(
      "\n".join(
        " ".join(random.choices(shop.vocabulary(world), k=random.randint(50, 400)))
        for _ in range(20_000)
      )
    )
    for source, seq_len in (
      (schema.Source(count=20_000), 128),
      (schema.Source("text", str(text)), _ROW_LENGTH),
    ):
      data, where = schema.Data(seq_len=seq_len), f"{folder}/{source.task}"
      corpus = sources.Corpus(source, data, world, tokenizer)
      cache.cache(corpus, "train", where, say=lambda _: None)
      rows = loader.PackedDocuments(documents.CachedDocuments(where), seq_len, 0)
      wall, cpu, count = time.monotonic(), time.process_time(), 0
      for batch in loader.batches(rows, 64, 1 << 30):
        count += len(batch["tokens"])
        if time.monotonic() - wall > seconds / 2:
          break
      tokens = count * seq_len * rows.fill
      print(
        f"  loader: {source.task}, {rows.documents.lengths.mean():.0f} tokens a document, ArrayRecord to rows of {seq_len}: "
        f"{tokens / (time.process_time() - cpu) / 1e6:.2f}M tokens a core-second, "
        f"{tokens / (time.monotonic() - wall) / 1e6:.2f}M a second"
      )
