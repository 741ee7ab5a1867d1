"""One mesh, logical axes: which part of which array lives on which device.

The model names logical axes only; `Rules` maps them to mesh axes. `jit` with `NamedSharding` does
the rest.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from synthjax.config import schema
from synthjax.errors import Error
from synthjax.kernels.linear_logprob import Split

AXES = ("replica", "fsdp", "tensor", "context")
_UNFILLED = -1


class MeshError(Error, ValueError):
  """A mesh that does not fit the devices or the model; the message proposes one that does."""


@dataclasses.dataclass(frozen=True)
class Rules:
  """Logical axis -> mesh axes. Two logical axes of one array may not use the same mesh axis."""

  batch: tuple[str, ...] = ("replica", "fsdp")  # sequences of a batch
  sequence: tuple[str, ...] = ("context",)  # positions of a sequence
  whole: tuple[str, ...] = ()  # positions of a sequence, where every device needs them all
  embed: tuple[str, ...] = ("fsdp",)  # residual width, of parameters
  heads: tuple[str, ...] = ("tensor",)  # query heads
  kv_heads: tuple[str, ...] = ("tensor",)  # key and value heads
  head_dim: tuple[str, ...] = ()  # width of a head
  mlp: tuple[str, ...] = ("tensor",)  # hidden width of the MLP
  vocab: tuple[str, ...] = ("tensor",)  # rows of the embedding, columns of the head
  layers: tuple[str, ...] = ()  # stacked blocks

  def spec(self, *logical: str) -> PartitionSpec:
    """The partition of an array with these logical axes.

    Raises:
      MeshError: an unknown logical axis, or two of them on one mesh axis.
    """
    taken: dict[str, str] = {}
    entries = []
    for name in logical:
      if not hasattr(self, name):
        known = ", ".join(field.name for field in dataclasses.fields(self))
        raise MeshError(f"logical axis {name!r} is unknown; known: {known}")
      axes = getattr(self, name)
      for axis in axes:
        if axis in taken:
          raise MeshError(
            f"an array with axes {logical} would use mesh axis {axis!r} twice, for "
            f"{taken[axis]!r} and for {name!r}; change one of the two rules"
          )
        taken[axis] = name
      # A single axis goes by its plain name, as JAX prints it.
      if len(axes) == 1:
        entries.append(axes[0])
      else:
        entries.append(axes or None)
    return PartitionSpec(*entries)


# Activations keep the residual width whole: their batch already uses `fsdp`.
ACTIVATIONS = Rules(embed=())
PARAMETERS = Rules(batch=(), sequence=())


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh with the rules for parameters and activations."""

  mesh: jax.sharding.Mesh
  parameters: Rules = PARAMETERS
  activations: Rules = ACTIVATIONS

  def constrain(self, x: jax.Array, *logical: str) -> jax.Array:
    """Lays an activation out over the mesh, inside jit."""
    if self.mesh.size == 1:
      return x
    sharding = NamedSharding(self.mesh, self.activations.spec(*logical))
    return jax.lax.with_sharding_constraint(x, sharding)

  def of(self, leaves: Any) -> Any:
    """Shardings of a tree of `transformer.Leaf` (shape, logical axes)."""

    def sharding(leaf):
      return NamedSharding(self.mesh, self.parameters.spec(*leaf.axes))

    return jax.tree.map(sharding, leaves, is_leaf=lambda x: hasattr(x, "axes"))

  @property
  def replicated(self) -> NamedSharding:
    """Of arrays that every device holds whole."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch(self) -> NamedSharding:
    """Of arrays that begin with the sequences of a batch, or with groups of them."""
    return NamedSharding(self.mesh, self.activations.spec("batch"))

  @property
  def batch_shards(self) -> int:
    """Into how many parts the sequences of a batch are split."""
    return math.prod(self.mesh.shape[axis] for axis in self.activations.batch)

  @property
  def split(self) -> Split | None:
    """How a vocabulary-blocked head is split over the mesh; None on a single device."""
    if self.mesh.size == 1:
      return None
    return Split(self.mesh)

  def local_indices(self, batch_size: int) -> np.ndarray:
    """Which sequences of a batch this process's devices hold, ascending: those it has to read.

    It follows from where the mesh puts the devices. Processes that share a tensor or context axis
    hold the same sequences.
    """
    return _local_indices(self.batch, batch_size)

  def put(self, local: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
    """This process's part of a batch as global arrays over the mesh.

    Args:
      local: arrays [n, ...] for the sequences of `local_indices(batch_size)`: n is their number, or
        a divisor of it where an entry belongs to a group of neighbouring sequences.
      batch_size: sequences of the batch, over all processes.
    """
    indices = self.local_indices(batch_size)
    return {name: self._put(array, indices, batch_size) for name, array in local.items()}

  def _put(self, local: np.ndarray, indices: np.ndarray, batch_size: int) -> jax.Array:
    group_size = len(indices) // len(local)  # sequences that an entry belongs to
    group_starts = indices[::group_size]
    groups = batch_size // group_size

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
      assert index is not None
      start, stop, _ = index[0].indices(groups)
      first = int(np.searchsorted(group_starts, start * group_size))
      return local[first : first + stop - start]

    return jax.make_array_from_callback((groups, *local.shape[1:]), self.batch, part)


@functools.lru_cache(8)  # every batch of a training asks for it
def _local_indices(sharding: NamedSharding, batch_size: int) -> np.ndarray:
  parts = sharding.addressable_devices_indices_map((batch_size,)).values()
  everything = np.arange(batch_size)
  indices = np.unique(np.concatenate([everything[part] for part in parts]))
  indices.setflags(write=False)
  return indices


def make_layout(mesh: schema.Mesh, devices: list[jax.Device] | None = None) -> Layout:
  """The mesh of the config over `devices` (default: all).

  Raises:
    MeshError: the sizes do not multiply to the number of devices.
  """
  if devices is None:
    devices = jax.devices()
  sizes = mesh_sizes(mesh, len(devices))
  shape = tuple(sizes[axis] for axis in AXES)
  # Named, because JAX's default differs between its releases.
  axis_types = (AxisType.Auto,) * len(AXES)
  return Layout(jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices))


def mesh_sizes(mesh: schema.Mesh, device_count: int) -> dict[str, int]:
  """Sizes of all four axes for that many devices, the -1 filled in.

  Raises:
    MeshError: the sizes do not multiply to the number of devices.
  """
  sizes = dataclasses.asdict(mesh)
  fixed = math.prod(size for size in sizes.values() if size != _UNFILLED)
  free = [axis for axis, size in sizes.items() if size == _UNFILLED]
  if free and device_count % fixed == 0:
    sizes[free[0]] = device_count // fixed
  elif free or fixed != device_count:
    requested = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    raise MeshError(
      f"mesh ({requested}) does not fit {device_count} devices: the fixed sizes multiply to "
      f"{fixed}; set config.mesh.fsdp=-1 and let the others multiply to a divisor of {device_count}"
    )
  return sizes


def check_fit(layout: Layout, cfg: schema.Model, batch_size: int, seq_len: int) -> None:
  """Raises MeshError naming the dimension that its mesh axes do not divide, and a mesh that fits.

  Args:
    layout: the mesh.
    cfg: the model, `vocab_size` set.
    batch_size: sequences that are computed at once, of all devices.
    seq_len: positions of a sequence.
  """
  sizes = dict(layout.mesh.shape)
  misfits = _misfits(sizes, cfg, batch_size, seq_len)
  if not misfits:
    return
  proposal = _proposal(layout.mesh.size, cfg, batch_size, seq_len)
  if proposal:
    advice = f"a mesh that fits: {proposal}"
  else:
    advice = "no mesh of that many devices fits; change the batch size or use fewer devices"
  raise MeshError(f"mesh {sizes} does not fit: {'; '.join(misfits)}. {advice}")


def _misfits(
  sizes: Mapping[str, int], cfg: schema.Model, batch_size: int, seq_len: int
) -> list[str]:
  """A phrase for every dimension that is not divided."""
  dimensions = {
    "batch": ("train.batch_size / train.accumulate", batch_size),
    "sequence": ("data.seq_len", seq_len),
    "heads": ("model.heads", cfg.heads),
    "kv_heads": ("model.kv_heads", cfg.kv_heads),
    "mlp": ("model.mlp_dim", cfg.mlp_dim),
    "vocab": ("model.vocab_size", cfg.vocab_size),
  }
  misfits = []
  for name, (label, size) in dimensions.items():
    axes = getattr(ACTIVATIONS, name)
    shards = math.prod(sizes[axis] for axis in axes)
    if size % shards:
      misfits.append(f"{label}={size} is not divisible by {'x'.join(axes)}={shards}")
  width = math.prod(sizes[axis] for axis in PARAMETERS.embed)
  if cfg.d_model % width:
    misfits.append(f"model.d_model={cfg.d_model} is not divisible by fsdp={width}")
  return misfits


def _proposal(devices: int, cfg: schema.Model, batch_size: int, seq_len: int) -> str | None:
  """The fitting mesh with the least tensor and context splitting, then the most fsdp."""
  for split in _divisors(devices):
    for tensor in reversed(_divisors(split)):
      for replica in _divisors(devices // split):
        sizes = {
          "replica": replica,
          "fsdp": devices // split // replica,
          "tensor": tensor,
          "context": split // tensor,
        }
        if not _misfits(sizes, cfg, batch_size, seq_len):
          return ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
  return None


def _divisors(number: int) -> list[int]:
  return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
