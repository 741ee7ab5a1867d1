"""Sources as seqio tasks. Imports seqio and TensorFlow: only what defines or caches data imports this."""

import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import seqio
import tensorflow as tf

from synthjax import files
from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.data import sources
from synthjax.data.tokenizers import Tokenizer

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's

_COLUMNS = ("id", "inputs", "targets", "drop")


class Vocabulary(seqio.Vocabulary):
  """A tokenizer as seqio sees it."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    super().__init__(extra_ids=0)

  @property
  def eos_id(self) -> int:
    return self._tokenizer.eos_id

  @property
  def unk_id(self) -> int | None:
    return None

  @property
  def pad_id(self) -> int:
    return self._tokenizer.pad_id

  @property
  def _base_vocab_size(self) -> int:
    return self._tokenizer.size

  def _encode(self, s: str) -> list[int]:
    return self._tokenizer.encode(s)

  def _decode(self, ids: Iterable[int]) -> str:
    return self._tokenizer.decode(ids)

  def _encode_tf(self, s):
    found = tf.numpy_function(
      lambda b: tf.constant(self._encode(b.decode()), tf.int32).numpy(),
      [s],
      tf.int32,
      stateful=False,
    )
    return tf.ensure_shape(found, [None])

  def _decode_tf(self, ids):
    return tf.numpy_function(
      lambda i: self._decode(i.tolist()).encode(), [ids], tf.string, stateful=False
    )

  def __eq__(self, other) -> bool:
    return (
      isinstance(other, Vocabulary) and self._tokenizer.fingerprint == other._tokenizer.fingerprint
    )

  def __hash__(self) -> int:
    return hash(self._tokenizer.fingerprint)


class _Source(seqio.DataSource):
  """One of the project's sources: a shard a file, rows as (id, inputs, targets, drop)."""

  def __init__(
    self,
    source: schema.Source,
    data: schema.Data,
    world: World,
    errors: pathlib.Path,
    left_out: frozenset[str],
  ):
    self._made_of, self._errors, self._left_out = (source, data, world), errors, left_out
    super().__init__(splits=("train", "test"))

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def list_shards(self, split: str) -> list[str]:
    source, data, _ = self._made_of
    return sources.shards(source, data, split)

  def get_dataset(self, split="train", shuffle=True, seed=None, shard_info=None, **unused):
    """As seqio asks; the order is that of the file: the loader shuffles, by index."""
    source, _, world = self._made_of
    names = self.list_shards(split)
    wanted = names[shard_info.index :: shard_info.num_shards] if shard_info else names

    def rows():
      try:
        for name in wanted:
          for e in sources.read(source, world, split, name):
            drop = "repeats an evaluation problem" if e.id in self._left_out else e.drop
            yield {"id": e.id, "inputs": e.inputs, "targets": e.targets, "drop": drop}
      except files.DataError as e:
        # TensorFlow would wrap it in a page of traces; whoever runs the pipeline finds it here.
        files.write_json(self._errors, str(e))
        raise

    return tf.data.Dataset.from_generator(
      rows, output_signature={c: tf.TensorSpec((), tf.string) for c in _COLUMNS}
    )


def register(
  name: str,
  source: schema.Source,
  data: schema.Data,
  world: World,
  tokenizer: Tokenizer,
  errors: pathlib.Path,
  left_out: frozenset[str] = frozenset(),
) -> seqio.Task:
  """A source as the seqio task `name`, replacing one of that name; splits `train` and `test`.

  Bad input is written to `errors`. Documents with an id in `left_out` are dropped, with the reason.
  """
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  feature = seqio.Feature(Vocabulary(tokenizer), add_eos=False, dtype=tf.int32)
  return seqio.TaskRegistry.add(
    name,
    source=_Source(source, data, world, errors, left_out),
    preprocessors=[seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()],
    output_features={"inputs": feature, "targets": feature},
  )


def tfds_rows(name: str, split: str) -> Iterator[dict[str, Any]]:
  """Rows of `NAME` or `NAME#SPLIT` from TensorFlow Datasets (TFDS_DATA_DIR says where they lie), bytes as text."""
  import tensorflow_datasets as tfds

  name, _, other = name.partition("#")
  try:
    builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    builder.download_and_prepare()
    rows = tfds.as_numpy(builder.as_dataset(split=other or split, shuffle_files=False))
  except Exception as e:
    raise files.DataError(
      f"tfds:{name}: TensorFlow Datasets cannot give split {other or split!r} ({type(e).__name__}: "
      f"{str(e).strip().splitlines()[0][:200]}); prepare it where there is a network and set TFDS_DATA_DIR"
    ) from e
  for row in rows:
    yield {key: value.decode() if isinstance(value, bytes) else value for key, value in row.items()}
