"""One mesh, logical axes: which part of which array lives on which device, and how many processes start together.

The model names logical axes only; `Rules` maps them to mesh axes. `jit` with `NamedSharding` does the rest.
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

  batch: tuple[str, ...] = ("replica", "fsdp")  # rows of a batch
  sequence: tuple[str, ...] = ("context",)  # positions of a row
  whole: tuple[str, ...] = ()  # positions of a row, where every device needs them all
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
        raise MeshError(
          f"logical axis {name!r} is unknown; known: {', '.join(f.name for f in dataclasses.fields(self))}"
        )
      for axis in getattr(self, name):
        if axis in taken:
          raise MeshError(
            f"an array with axes {logical} would use mesh axis {axis!r} twice, for {taken[axis]!r} and for {name!r}; "
            "change one of the two rules"
          )
        taken[axis] = name
      axes = getattr(self, name)
      entries.append(axes[0] if len(axes) == 1 else (axes or None))
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
    return jax.lax.with_sharding_constraint(
      x, NamedSharding(self.mesh, self.activations.spec(*logical))
    )

  def of(self, leaves: Any) -> Any:
    """Shardings of a tree of `model.Leaf` (shape, logical axes)."""
    is_leaf = lambda x: hasattr(x, "axes")
    return jax.tree.map(
      lambda p: NamedSharding(self.mesh, self.parameters.spec(*p.axes)), leaves, is_leaf=is_leaf
    )

  @property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch(self) -> NamedSharding:
    """Of arrays that begin with the rows of a batch, or with groups of them."""
    return NamedSharding(self.mesh, self.activations.spec("batch"))

  @property
  def row_shards(self) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(self.mesh.shape[axis] for axis in self.activations.batch)

  def share(self, batch_size: int) -> np.ndarray:
    """Which rows of a batch this process's devices hold, ascending: those that it has to read.

    It follows from where the mesh puts the devices. Processes that share a tensor or context axis
    hold the same rows.
    """
    return _share(self.batch, batch_size)

  @property
  def split(self) -> Split | None:
    """How a vocabulary-blocked head is split over the mesh; None on a single device."""
    return Split(self.mesh) if self.mesh.size > 1 else None

  def put(self, local: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
    """This process's part of a batch as global arrays over the mesh.

    Args:
      local: arrays [n, ...] for the rows of `share(batch_size)`: n is their number, or a divisor of
        it where an entry belongs to a group of neighbouring rows.
      batch_size: rows of the batch, over all processes.
    """
    share = self.share(batch_size)
    return {name: self._put(array, share, batch_size) for name, array in local.items()}

  def _put(self, local: np.ndarray, share: np.ndarray, batch_size: int) -> jax.Array:
    group = len(share) // len(local)  # rows an entry belongs to
    first_rows = share[::group]

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
      assert index is not None
      start, stop, _ = index[0].indices(batch_size // group)
      place = int(np.searchsorted(first_rows, start * group))
      return local[place : place + stop - start]

    shape = (batch_size // group, *local.shape[1:])
    return jax.make_array_from_callback(shape, self.batch, part)


@functools.lru_cache(8)
def _share(sharding: NamedSharding, batch_size: int) -> np.ndarray:
  """Computed once for a run: every batch asks for it."""
  parts = sharding.addressable_devices_indices_map((batch_size,)).values()
  rows = np.arange(batch_size)
  found = np.unique(np.concatenate([rows[index] for index in parts]))
  found.setflags(write=False)
  return found


def make_layout(mesh: schema.Mesh, devices: list[jax.Device] | None = None) -> Layout:
  """The mesh of the config over `devices` (default: all). Raises MeshError where the sizes do not multiply to their number."""
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(mesh, len(devices))
  shape = tuple(sizes[a] for a in AXES)
  made = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
  return Layout(made)


def mesh_sizes(mesh: schema.Mesh, device_count: int) -> dict[str, int]:
  """Sizes of all four axes for that many devices, the -1 filled in."""
  sizes = dataclasses.asdict(mesh)
  fixed = math.prod(s for s in sizes.values() if s != _UNFILLED)
  free = [a for a, s in sizes.items() if s == _UNFILLED]
  if free and device_count % fixed == 0:
    sizes[free[0]] = device_count // fixed
  elif free or fixed != device_count:
    asked = ", ".join(f"{a}={s}" for a, s in sizes.items())
    raise MeshError(
      f"mesh ({asked}) does not fit {device_count} devices: the fixed sizes multiply to {fixed}; "
      f"set config.mesh.fsdp=-1 and let the others multiply to a divisor of {device_count}"
    )
  return sizes


def check_fit(layout: Layout, cfg: schema.Model, batch_size: int, seq_len: int) -> None:
  """Raises MeshError naming the dimension that its mesh axes do not divide, and a mesh that fits."""
  sizes = dict(layout.mesh.shape)
  problems = _misfits(sizes, cfg, batch_size, seq_len)
  if problems:
    fitting = _proposal(layout.mesh.size, cfg, batch_size, seq_len)
    advice = (
      f"a mesh that fits: {fitting}"
      if fitting
      else "no mesh of that many devices fits; change the batch size or use fewer devices"
    )
    raise MeshError(f"mesh {sizes} does not fit: {'; '.join(problems)}. {advice}")


def _misfits(sizes, cfg, batch_size, seq_len):
  dims = {
    "batch": ("train.batch_size / train.accumulate", batch_size),
    "sequence": ("data.seq_len", seq_len),
    "heads": ("model.heads", cfg.heads),
    "kv_heads": ("model.kv_heads", cfg.kv_heads),
    "mlp": ("model.mlp_dim", cfg.mlp_dim),
    "vocab": ("model.vocab_size", cfg.vocab_size),
  }
  shards = {name: math.prod(sizes[a] for a in getattr(ACTIVATIONS, name)) for name in dims}
  found = [
    f"{label}={size} is not divisible by {'x'.join(getattr(ACTIVATIONS, name))}={shards[name]}"
    for name, (label, size) in dims.items()
    if size % shards[name]
  ]
  width = math.prod(sizes[a] for a in PARAMETERS.embed)
  if cfg.d_model % width:
    found.append(f"model.d_model={cfg.d_model} is not divisible by fsdp={width}")
  return found


def _proposal(devices, cfg, batch_size, seq_len):
  """The fitting mesh with the least tensor and context splitting, then the most fsdp."""

  def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]

  for split in divisors(devices):
    for tensor in divisors(split)[::-1]:
      for replica in divisors(devices // split):
        sizes = {
          "replica": replica,
          "fsdp": devices // split // replica,
          "tensor": tensor,
          "context": split // tensor,
        }
        if not _misfits(sizes, cfg, batch_size, seq_len):
          return ", ".join(f"config.mesh.{a}={s}" for a, s in sizes.items())
  return None
