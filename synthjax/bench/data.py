"""`synthjax bench data`: planned packing beside grain's and seqio's, and how fast packed sequences
come out of the loader.
"""

import pathlib
import random
import tempfile
import time
from collections.abc import Iterable
from importlib import metadata
from typing import NamedTuple

import grain
import numpy as np

from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.data import cache, documents, loader, packing, sources, tokenizers
from synthjax.worlds import shop

_SEQ_LEN = 512
# The peers are slower: of the 20,000 documents they get these.
_PEER_DOCUMENTS = 4000


class Packed(NamedTuple):
  """What a way to pack reaches.

  Attributes:
    rate: tokens a second of process time.
    fill: share of positions that hold a token.
  """

  rate: float
  fill: float


def run(seconds: float) -> None:
  """Prints tokens a core-second and fill of each way to pack, and the loader's tokens a second.

  The documents have the lengths of GSM8K.
  """
  lengths = np.random.default_rng(0).gamma(5.0, 45.0, 20_000).astype(int)
  lengths = np.clip(lengths, 20, _SEQ_LEN)
  print(
    f"{len(lengths):,} documents of {lengths.mean():.0f} tokens on average into sequences of "
    f"{_SEQ_LEN}; one core (process time)"
  )
  ours = _pack_planned(lengths)
  _print_packed("synthjax: plan and layout", ours)
  peers = {
    "grain FirstFitPackIterDataset": _pack_grain,
    "seqio trim_and_pack_dataset": _pack_seqio,
  }
  for name, pack in peers.items():
    packed = pack(lengths[:_PEER_DOCUMENTS])
    version = metadata.version(name.split()[0])
    _print_packed(f"{name} {version}", packed, f"synthjax is {ours.rate / packed.rate:.1f}x")
  _measure_loader(seconds)


def _print_packed(name: str, packed: Packed, ratio: str = "") -> None:
  print(
    f"  {name:45} {packed.rate / 1e6:6.2f}M tokens a core-second, "
    f"{100 * packed.fill:.1f} % full  {ratio}"
  )


def _pack_planned(lengths: np.ndarray) -> Packed:
  """Plan and layout together: what takes the place of packing in the loader."""
  # The first number of a record is the length of its prompt.
  records = []
  for n in lengths:
    record = np.concatenate([[0], np.ones(n, np.int32)])
    records.append(record.astype(np.int32))
  began = time.process_time()
  plan = packing.pack(lengths, _SEQ_LEN)
  for start in range(0, len(plan), 64):
    batch = []
    for k in range(start, min(start + 64, len(plan))):
      batch.append([records[i] for i in plan.row(k)])
    packing.layout(batch, _SEQ_LEN)
  return Packed(lengths.sum() / (time.process_time() - began), plan.fill)


def _drain(sequences: Iterable, lengths: np.ndarray) -> Packed:
  began = time.process_time()
  count = 0
  for _ in sequences:
    count += 1
  seconds = time.process_time() - began
  return Packed(lengths.sum() / seconds, lengths.sum() / (count * _SEQ_LEN))


def _pack_grain(lengths: np.ndarray) -> Packed:
  source = grain.MapDataset.source([{"tokens": np.ones(n, np.int32)} for n in lengths])
  dataset = grain.experimental.FirstFitPackIterDataset(
    source.to_iter_dataset(grain.ReadOptions(num_threads=0)),
    length_struct={"tokens": _SEQ_LEN},
    num_packing_bins=64,
  )
  return _drain(dataset, lengths)


def _pack_seqio(lengths: np.ndarray) -> Packed:
  import seqio
  import tensorflow as tf

  texts = [np.ones(n, np.int32) for n in lengths]
  dataset = tf.data.Dataset.from_generator(
    lambda: ({"tokens": text} for text in texts),
    output_signature={"tokens": tf.TensorSpec([None], tf.int32)},
  )
  packed = seqio.trim_and_pack_dataset(dataset, {"tokens": _SEQ_LEN})
  # One core, as the others: process time would count the threads' waiting too.
  options = tf.data.Options()
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  return _drain(packed.with_options(options), lengths)


def _measure_loader(seconds: float) -> None:
  """From ArrayRecord to batches, for short documents (the world's) and long ones (split text)."""
  world = World()
  with tempfile.TemporaryDirectory() as folder:
    text = pathlib.Path(folder) / "text.txt"
    vocabulary = shop.vocabulary(world)
    lines = []
    for _ in range(20_000):
      lines.append(" ".join(random.choices(vocabulary, k=random.randint(50, 400))))
    text.write_text("\n".join(lines))
    _load(schema.Source(count=20_000), 128, folder, seconds / 2)
    _load(schema.Source("text", str(text)), _SEQ_LEN, folder, seconds / 2)


def _load(source: schema.Source, seq_len: int, folder: str, seconds: float) -> None:
  world = World()
  tokenizer = tokenizers.load(schema.Tokenizer(), world)
  cached = f"{folder}/{source.task}"
  corpus = sources.Corpus(source, schema.Data(seq_len=seq_len), world, tokenizer)
  cache.cache(corpus, "train", cached, say=lambda _: None)
  packed = loader.PackedDocuments(documents.CachedDocuments(cached), seq_len, 0)
  wall, cpu, count = time.monotonic(), time.process_time(), 0
  for batch in loader.batches(packed, 64, 1 << 30):
    count += len(batch["tokens"])
    if time.monotonic() - wall > seconds:
      break
  cpu_seconds, wall_seconds = time.process_time() - cpu, time.monotonic() - wall
  tokens = count * seq_len * packed.fill
  print(
    f"  loader: {source.task}, {packed.documents.lengths.mean():.0f} tokens a document, "
    f"ArrayRecord to sequences of {seq_len}: {tokens / cpu_seconds / 1e6:.2f}M tokens a "
    f"core-second, {tokens / wall_seconds / 1e6:.2f}M a second"
  )
