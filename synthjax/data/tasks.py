"""seqio tasks over a config's examples. Imports seqio and TensorFlow: only what defines or caches data imports this."""

from collections.abc import Iterable

import seqio
import tensorflow as tf

from synthjax import schema
from synthjax.data import documents
from synthjax.data.tokenizers import Tokenizer
from synthjax.generate.worlds import shop

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's


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
    found = tf.numpy_function(lambda b: tf.constant(self._encode(b.decode()), tf.int32).numpy(), [s], tf.int32, stateful=False)
    return tf.ensure_shape(found, [None])

  def _decode_tf(self, ids):
    return tf.numpy_function(lambda i: self._decode(i.tolist()).encode(), [ids], tf.string, stateful=False)

  def __eq__(self, other) -> bool:
    return isinstance(other, Vocabulary) and self._tokenizer.fingerprint == other._tokenizer.fingerprint

  def __hash__(self) -> int:
    return hash(self._tokenizer.fingerprint)


def register(name: str, data: schema.Data, world: shop.World, tokenizer: Tokenizer) -> seqio.Task:
  """The config's task under `name`, replacing one of that name; splits `train` and `test`."""
  def dataset(split: str, shuffle_files: bool = False, seed: int | None = None):
    del shuffle_files, seed  # the loader shuffles, by index
    rows = documents.examples(data, world, split)
    columns = {field: [getattr(row, field) for row in rows] for field in documents.Example._fields}
    return tf.data.Dataset.from_tensor_slices(columns)

  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  feature = seqio.Feature(Vocabulary(tokenizer), add_eos=False, dtype=tf.int32)
  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(dataset, splits=("train", "test")),
    preprocessors=[seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()],
    output_features={"inputs": feature, "targets": feature},
  )
