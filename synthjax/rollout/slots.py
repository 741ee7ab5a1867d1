"""The engine's device side: slots that decode together, refilled from a queue inside the loop.

Slots stand in blocks. A block has a few pages of prefixes (`prefixes.Page`) that all its slots may
continue, and a queue of waiting sequences. Every shape is static: `admit` and `decode` are
compiled once.

Shapes: B blocks, N slots of a block, W = pages * page length shared positions, C own positions of
a slot, Q positions of a block's queue, R = N + Q rows of a block's results, P pages admitted
together, T positions of a page, D model, S = B * N sequences, M devices.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from synthjax.model.decode import Cache, LayerCache, Seen, decode_step, empty_cache, prefill
from synthjax.model.transformer import Params, Transformer
from synthjax.rollout.sampling import Filters, draw

# Mesh axes over which blocks are split; the parameters' own layout splits heads over `tensor`.
_DATA = ("replica", "fsdp")


@dataclasses.dataclass(frozen=True)
class Shape:
  """Static sizes."""

  blocks: int  # B; a multiple of the devices that share them
  slots: int  # N
  pages: int  # of a block
  page_length: int  # T: the longest prompt
  max_tokens: int  # C: the longest sample
  steps: int = 32  # tokens a slot decodes between two looks of the host

  @property
  def queue(self) -> int:
    """Q."""
    return 4 * self.slots

  @property
  def rows(self) -> int:
    """R."""
    return self.slots + self.queue


class Sequences(NamedTuple):
  """What a sequence is drawn from: arrays [B, Q] in a queue, [B, N] in slots."""

  end: jax.Array  # position of the prompt's last token
  row: jax.Array  # of the block's results
  max_tokens: jax.Array
  key: jax.Array  # [..., 2]
  filters: Filters


class Results(NamedTuple):
  """The sampled tokens by row."""

  tokens_BRC: jax.Array
  log_probs_BRC: jax.Array
  length_BR: jax.Array
  done_BR: jax.Array


class State(NamedTuple):
  """Everything that lives on the device between two calls."""

  cache: Cache
  prefix_BWD: jax.Array  # final hidden states of the prefixes
  position_BW: jax.Array
  until_BW: jax.Array
  hidden_BND: jax.Array  # from which a slot's next token is drawn
  sequences: Sequences
  count_BN: jax.Array  # tokens drawn so far
  alive_BN: jax.Array
  results: Results
  time: jax.Array  # steps so far
  used: jax.Array  # slots that were alive, summed over steps


class Pages(NamedTuple):
  """Pages to be computed."""

  tokens_PT: jax.Array
  positions_PT: jax.Array
  until_PT: jax.Array
  places_P2: jax.Array  # (block of its device, first position)
  real_P: jax.Array  # False: padding, written nowhere


@dataclasses.dataclass(frozen=True)
class _Field:
  """An array of the state. Not a NamedTuple, so that it is a leaf of the table."""

  dims: str  # letters of the legend
  dtype: jax.typing.DTypeLike | None  # None: the model's


def _field(dims: str, dtype: jax.typing.DTypeLike | None = jnp.int32) -> Any:
  """A field, of any type to the checker: it stands in the table where an array will."""
  return _Field(dims, dtype)


# Dimensions and type of every array of the state but the cache, which the model describes.
_FIELDS: Any = State(
  cache=(),
  prefix_BWD=_field("BWD", None),
  position_BW=_field("BW"),
  until_BW=_field("BW"),
  hidden_BND=_field("BND", None),
  sequences=Sequences(
    end=_field("BN"),
    row=_field("BN"),
    max_tokens=_field("BN"),
    key=_field("BN2", jnp.uint32),
    filters=Filters(
      temperature=_field("BN", jnp.float32),
      top_k=_field("BN"),
      top_p=_field("BN", jnp.float32),
      min_p=_field("BN", jnp.float32),
    ),
  ),
  count_BN=_field("BN"),
  alive_BN=_field("BN", bool),
  results=Results(
    tokens_BRC=_field("BRC"),
    log_probs_BRC=_field("BRC", jnp.float32),
    length_BR=_field("BR"),
    done_BR=_field("BR", bool),
  ),
  time=_field("M"),
  used=_field("M"),
)


class Functions(NamedTuple):
  """Compiled once for a model and a shape."""

  empty: Any  # () -> State
  admit: Any  # (params, state, pages) -> state
  decode: Any  # (params, state, queue, waiting_B, killed_BR) -> (state, results, taken_B)
  devices: int  # that share the blocks


class _Static(NamedTuple):
  """What a compilation is for."""

  model: Transformer
  shape: Shape
  size: int  # number of ids that may be drawn
  eos_id: int


@functools.lru_cache(8)
def functions(
  model: Transformer, shape: Shape, mesh: jax.sharding.Mesh, size: int, eos_id: int
) -> Functions:
  """The engine's functions, blocks split over the mesh's data axes.

  Args:
    model: its parameters come from `decode.unstack_layers`, laid out over the mesh.
    shape: `blocks` is a multiple of the devices that share them.
    mesh: of this process's devices.
    size: number of ids that may be drawn.
    eos_id: ends a sequence.
  """
  static = _Static(model, shape, size, eos_id)
  blocks, whole = PartitionSpec(_DATA), PartitionSpec()
  devices = int(np.prod([mesh.shape[axis] for axis in _DATA]))
  empty = functools.partial(_empty, static, devices)
  # Each part of the mesh runs its own loop and waits for no other; only `tensor` is left to the
  # compiler.
  split = functools.partial(jax.shard_map, mesh=mesh, axis_names=set(_DATA), check_vma=False)
  admit = split(
    functools.partial(_admit, model), in_specs=(whole, blocks, blocks), out_specs=blocks
  )
  decode = split(
    functools.partial(_decode, static),
    in_specs=(whole, blocks, blocks, blocks, blocks),
    out_specs=blocks,
  )
  by_blocks = NamedSharding(mesh, blocks)
  shared = NamedSharding(mesh, PartitionSpec(_DATA, "tensor"))
  own = NamedSharding(mesh, PartitionSpec(_DATA, None, "tensor"))
  heads = LayerCache(shared, shared, own, own)  # type: ignore[arg-type]
  state = jax.tree.map(lambda _: by_blocks, jax.eval_shape(empty))
  state = state._replace(cache=(heads,) * model.cfg.layers)
  return Functions(
    empty=jax.jit(empty, out_shardings=state),
    admit=jax.jit(admit, donate_argnums=1, out_shardings=state),
    decode=jax.jit(decode, donate_argnums=1, out_shardings=(state, by_blocks, by_blocks)),
    devices=devices,
  )


def _empty(static: _Static, devices: int) -> State:
  model, shape = static.model, static.shape
  sizes = {
    "B": shape.blocks,
    "N": shape.slots,
    "W": shape.pages * shape.page_length,
    "R": shape.rows,
    "C": shape.max_tokens,
    "D": model.cfg.d_model,
    "M": devices,
    "2": 2,
  }

  def zeros(field: _Field) -> jax.Array:
    dims = [sizes[letter] for letter in field.dims]
    return jnp.zeros(dims, model.dtype if field.dtype is None else field.dtype)

  cache = empty_cache(model, sizes["B"], sizes["N"], sizes["W"], sizes["C"])
  return jax.tree.map(zeros, _FIELDS)._replace(cache=cache)


def _admit(model: Transformer, params: Params, state: State, pages: Pages) -> State:
  """Computes pages and writes each to its block and position of this device."""
  hidden_PTD, kept = prefill(model, params, pages.tokens_PT, pages.positions_PT, pages.until_PT)

  def put(array, values, page, axis):
    """Writes the page's T values into a block, its positions along `axis`."""
    start: list[Any] = [0] * array.ndim
    start[0], start[axis] = pages.places_P2[page, 0], pages.places_P2[page, 1]
    new = values[page : page + 1].astype(array.dtype)
    old = jax.lax.dynamic_slice(array, start, new.shape)
    return jax.lax.dynamic_update_slice(array, jnp.where(pages.real_P[page], new, old), start)

  for page in range(len(pages.real_P)):
    cache = []
    for layer, (k, v) in zip(state.cache, kept):
      layer = layer._replace(
        shared_k_BGWK=put(layer.shared_k_BGWK, k, page, 2),
        shared_v_BGWK=put(layer.shared_v_BGWK, v, page, 2),
      )
      cache.append(layer)
    state = state._replace(
      cache=tuple(cache),
      prefix_BWD=put(state.prefix_BWD, hidden_PTD, page, 1),
      position_BW=put(state.position_BW, pages.positions_PT, page, 1),
      until_BW=put(state.until_BW, pages.until_PT + pages.places_P2[:, 1:], page, 1),
    )
  return state


def _decode(static: _Static, params: Params, state: State, queue: Sequences, waiting_B, killed_BR):
  """Up to `shape.steps` tokens for every slot of this device; ends early when nothing is left."""
  killed_BN = jnp.take_along_axis(killed_BR, state.sequences.row, axis=1)
  state = state._replace(alive_BN=state.alive_BN & ~killed_BN)

  def goes_on(carry):
    n, state, taken_B = carry
    return (n < static.shape.steps) & (jnp.any(state.alive_BN) | jnp.any(taken_B < waiting_B))

  def one(carry):
    n, state, taken_B = carry
    idle = jnp.any(~state.alive_BN & (taken_B < waiting_B)[:, None])
    # The cache and the counters have no part in a refill, and what passes through `cond` is copied.
    kept = {"cache": state.cache, "time": state.time, "used": state.used}
    refill = lambda state, taken_B: jax.vmap(_refill)(state, queue, taken_B, waiting_B)
    unchanged = lambda state, taken_B: (state, taken_B)
    without = state._replace(**dict.fromkeys(kept, ()))
    state, taken_B = jax.lax.cond(idle, refill, unchanged, without, taken_B)
    return n + 1, _step(static, params, state._replace(**kept)), taken_B

  start = (jnp.zeros((), jnp.int32), state, jnp.zeros_like(waiting_B))
  _, state, taken_B = jax.lax.while_loop(goes_on, one, start)
  return state, state.results, taken_B


def _refill(state: State, queue: Sequences, taken, waiting):
  """Idle slots of a block take the next sequences of its queue: (state, how many are taken now)."""
  rank_N = taken + jnp.cumsum(~state.alive_BN) - 1
  gets_N = ~state.alive_BN & (rank_N < waiting)
  new = jax.tree.map(lambda x_Q: x_Q[jnp.minimum(rank_N, len(queue.end) - 1)], queue)
  either = lambda new, old: jnp.where(gets_N.reshape(-1, *[1] * (new.ndim - 1)), new, old)
  done_R = state.results.done_BR
  # A row beyond the last one is dropped: slots that get nothing leave the results as they are.
  done_R = done_R.at[jnp.where(gets_N, new.row, len(done_R))].set(False, mode="drop")
  state = state._replace(
    sequences=jax.tree.map(either, new, state.sequences),
    hidden_BND=either(state.prefix_BWD[new.end], state.hidden_BND),
    count_BN=jnp.where(gets_N, 0, state.count_BN),
    alive_BN=state.alive_BN | gets_N,
    results=state.results._replace(done_BR=done_R),
  )
  return state, taken + gets_N.sum()


def _step(static: _Static, params: Params, state: State) -> State:
  """Draws a token for every slot, records it, and computes the hidden state after it."""
  token_BN, log_prob_BN = _draw(static, params, state)
  over_BN = (token_BN == static.eos_id) | (state.count_BN + 1 >= state.sequences.max_tokens)
  results = jax.vmap(_record)(
    state.results,
    state.sequences.row,
    state.count_BN,
    token_BN,
    log_prob_BN,
    over_BN,
    state.alive_BN,
  )
  time = state.time[0]
  position_BN, seen = _visibility(static, state, time)
  # The places for a slot's own tokens are a ring, and all slots write to the same place.
  place = time % static.shape.max_tokens
  hidden_BND, cache = decode_step(
    static.model, params, token_BN, position_BN, state.cache, seen, place
  )
  return state._replace(
    cache=cache,
    hidden_BND=hidden_BND,
    count_BN=state.count_BN + 1,
    alive_BN=state.alive_BN & ~over_BN,
    results=results,
    time=state.time + 1,
    used=state.used + state.alive_BN.sum(dtype=jnp.int32),
  )


def _draw(static: _Static, params: Params, state: State) -> tuple[jax.Array, jax.Array]:
  """(token_BN, log_prob_BN) of every slot, idle ones too."""
  B, N = state.alive_BN.shape
  flat = lambda x: x.reshape(B * N, *x.shape[2:])
  keys_S = jax.vmap(jax.random.fold_in)(
    jax.random.wrap_key_data(flat(state.sequences.key)), flat(state.count_BN)
  )
  token_S, log_prob_S = draw(
    flat(static.model.logits(params, state.hidden_BND)),
    keys_S,
    jax.tree.map(flat, state.sequences.filters),
    static.size,
  )
  return token_S.reshape(B, N), log_prob_S.reshape(B, N)


def _visibility(static: _Static, state: State, time: jax.Array) -> tuple[jax.Array, Seen]:
  """(position_BN of the token just drawn, what it sees of its prefix and of its own tokens)."""
  end_BN, count_BN = state.sequences.end, state.count_BN
  C = static.shape.max_tokens
  position_BN = jnp.take_along_axis(state.position_BW, end_BN, axis=1) + count_BN + 1
  places_11W = jnp.arange(state.until_BW.shape[1])[None, None]
  shared_BNW = (places_11W <= end_BN[..., None]) & (end_BN[..., None] < state.until_BW[:, None])
  # Steps since a place of the ring was written; the one with 0 is overwritten now.
  age_11C = ((time - jnp.arange(C)) % C)[None, None]
  own_BNC = (age_11C > 0) & (age_11C <= count_BN[..., None])
  if window := static.model.cfg.window:
    shared_BNW &= position_BN[..., None] - state.position_BW[:, None] < window
    own_BNC &= age_11C < window
  return position_BN, Seen(shared_BNW, own_BNC)


def _record(results: Results, row_N, count_N, token_N, log_prob_N, over_N, alive_N) -> Results:
  """Writes a block's new tokens to their rows; those of idle slots are dropped."""
  row_N = jnp.where(alive_N, row_N, len(results.done_BR))
  put = lambda x, where, values: x.at[where].set(values, mode="drop")
  return Results(
    tokens_BRC=put(results.tokens_BRC, (row_N, count_N), token_N),
    log_probs_BRC=put(results.log_probs_BRC, (row_N, count_N), log_prob_N),
    length_BR=put(results.length_BR, row_N, count_N + 1),
    done_BR=put(results.done_BR, row_N, over_N),
  )
