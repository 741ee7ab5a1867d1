"""The engine's device side: a fixed number of slots that decode together, refilled from a queue inside the loop.

Slots stand in blocks. A block has a few pages of prefixes (`prefixes.Page`) that all its slots may go on from, and a queue of sequences
that wait. Everything is static in shape: one compilation of `admit`, one of `decode`.

Shapes: B blocks, N slots of a block, W = pages * page length shared places, C own places of a slot, Q places of a block's queue, R = N + Q
rows of a block's results, P pages admitted together, T places of a page, D model.
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

_DATA = (
  "replica",
  "fsdp",
)  # mesh axes over which blocks are split; heads are split over `tensor` by the parameters' own layout


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
    return 4 * self.slots

  @property
  def rows(self) -> int:
    return self.slots + self.queue


class Sequences(NamedTuple):
  """What a sequence is drawn from: arrays [B, Q] in a queue, [B, N] in slots."""

  end: jax.Array  # place of the prompt's last token
  row: jax.Array  # of the block's results
  max_tokens: jax.Array
  key: jax.Array  # uint32 [..., 2]
  filters: Filters


class Results(NamedTuple):
  """What rows of results hold."""

  tokens_BRC: jax.Array
  log_probs_BRC: jax.Array
  length_BR: jax.Array
  done_BR: jax.Array  # bool


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
  time: jax.Array  # [devices]: steps so far
  used: jax.Array  # [devices]: slots that were alive, summed over steps


class Functions(NamedTuple):
  """Compiled once for a model and a shape."""

  empty: Any  # () -> State
  admit: Any  # (params, state, tokens_PT, positions_PT, until_PT, places_P2 (block of its device, place), real_P) -> state
  decode: Any  # (params, state, queue, waiting_B, killed_BR) -> (state, results, taken_B)
  devices: int  # that share the blocks


@functools.lru_cache(8)
def functions(
  model: Transformer, shape: Shape, mesh: jax.sharding.Mesh, size: int, eos_id: int
) -> Functions:
  """The engine's functions, blocks split over the mesh's data axes.

  Args:
    model: its parameters come from `decode.unstack_layers`, laid out over the mesh.
    shape: `blocks` is divided by the devices that share them.
    mesh: of this process's devices.
    size: number of ids that may be drawn.
    eos_id: ends a sequence.
  """
  blocks, whole = PartitionSpec(_DATA), PartitionSpec()
  devices = int(np.prod([mesh.shape[axis] for axis in _DATA]))
  empty = functools.partial(_empty, model, shape, devices)
  # Each part of the mesh runs its own loop and waits for no other; only `tensor` is left to the compiler.
  split = functools.partial(jax.shard_map, mesh=mesh, axis_names=set(_DATA), check_vma=False)
  admit = split(
    functools.partial(_admit, model), in_specs=(whole, *(blocks,) * 6), out_specs=blocks
  )
  decode = split(
    functools.partial(_decode, model, shape, size, eos_id),
    in_specs=(whole, *(blocks,) * 4),
    out_specs=blocks,
  )
  state = jax.tree.map(lambda _: NamedSharding(mesh, blocks), jax.eval_shape(empty))
  shared, own = (
    NamedSharding(mesh, PartitionSpec(_DATA, *axes)) for axes in (("tensor",), (None, "tensor"))
  )
  heads = LayerCache(shared, shared, own, own)  # type: ignore[arg-type]
  state = state._replace(cache=(heads,) * model.cfg.layers)
  others = NamedSharding(mesh, blocks)
  return Functions(
    jax.jit(empty, out_shardings=state),
    jax.jit(admit, donate_argnums=1, out_shardings=state),
    jax.jit(decode, donate_argnums=1, out_shardings=(state, others, others)),
    devices,
  )


def _empty(model: Transformer, shape: Shape, devices: int) -> State:
  B, N, C, R = shape.blocks, shape.slots, shape.max_tokens, shape.rows
  W, D, dtype = shape.pages * shape.page_length, model.cfg.d_model, model.dtype
  whole = lambda *dims: jnp.zeros(dims, jnp.int32)
  real = lambda *dims: jnp.zeros(dims, jnp.float32)
  sequences = Sequences(
    whole(B, N),
    whole(B, N),
    whole(B, N),
    jnp.zeros((B, N, 2), jnp.uint32),
    Filters(real(B, N), whole(B, N), real(B, N), real(B, N)),
  )
  return State(
    empty_cache(model, B, N, W, C),
    jnp.zeros((B, W, D), dtype),
    whole(B, W),
    whole(B, W),
    jnp.zeros((B, N, D), dtype),
    sequences,
    whole(B, N),
    jnp.zeros((B, N), bool),
    Results(whole(B, R, C), real(B, R, C), whole(B, R), jnp.zeros((B, R), bool)),
    whole(devices),
    whole(devices),
  )


def _admit(
  model: Transformer,
  params: Params,
  state: State,
  tokens_PT,
  positions_PT,
  until_PT,
  places_P2,
  real_P,
) -> State:
  """Computes pages and puts each at its (block, place) of this device; a page that is not real goes nowhere."""
  hidden_PTD, kept = prefill(model, params, tokens_PT, positions_PT, until_PT)

  def put(array, values, page, axis):
    """Writes the page's T values into a block, its places along `axis`."""
    start = [0] * array.ndim
    start[0], start[axis] = places_P2[page, 0], places_P2[page, 1]
    new = values[page : page + 1].astype(array.dtype)
    old = jax.lax.dynamic_slice(array, start, new.shape)
    return jax.lax.dynamic_update_slice(array, jnp.where(real_P[page], new, old), start)

  for page in range(len(real_P)):
    cache = tuple(
      layer._replace(
        shared_k_BGWK=put(layer.shared_k_BGWK, k, page, 2),
        shared_v_BGWK=put(layer.shared_v_BGWK, v, page, 2),
      )
      for layer, (k, v) in zip(state.cache, kept)
    )
    state = state._replace(
      cache=cache,
      prefix_BWD=put(state.prefix_BWD, hidden_PTD, page, 1),
      position_BW=put(state.position_BW, positions_PT, page, 1),
      until_BW=put(state.until_BW, until_PT + places_P2[:, 1:], page, 1),
    )
  return state


def _decode(
  model: Transformer,
  shape: Shape,
  size: int,
  eos_id: int,
  params: Params,
  state: State,
  queue: Sequences,
  waiting_B,
  killed_BR,
):
  """Up to `shape.steps` tokens for every slot of this device; ends early when nothing is left to do."""
  killed_BN = jnp.take_along_axis(killed_BR, state.sequences.row, axis=1)
  state = state._replace(alive_BN=state.alive_BN & ~killed_BN)

  def go_on(carry):
    n, state, taken_B = carry
    return (n < shape.steps) & (jnp.any(state.alive_BN) | jnp.any(taken_B < waiting_B))

  def one(carry):
    n, state, taken_B = carry
    idle = jnp.any(~state.alive_BN & (taken_B < waiting_B)[:, None])
    # The cache and the counters have no part in a refill, and what passes through `cond` is copied.
    kept = {"cache": state.cache, "time": state.time, "used": state.used}
    refill = lambda state, taken_B: jax.vmap(_refill)(state, queue, taken_B, waiting_B)
    state, taken_B = jax.lax.cond(
      idle, refill, lambda *same: same, state._replace(**dict.fromkeys(kept, ())), taken_B
    )
    return n + 1, _step(model, size, eos_id, params, state._replace(**kept)), taken_B

  _, state, taken_B = jax.lax.while_loop(
    go_on, one, (jnp.zeros((), jnp.int32), state, jnp.zeros_like(waiting_B))
  )
  return state, state.results, taken_B


def _refill(state: State, queue: Sequences, taken, waiting):
  """A block's idle slots take the next sequences of its queue: (state, how many are taken by now)."""
  rank_N = taken + jnp.cumsum(~state.alive_BN) - 1
  gets_N = ~state.alive_BN & (rank_N < waiting)
  new = jax.tree.map(lambda x_Q: x_Q[jnp.minimum(rank_N, len(queue.end) - 1)], queue)
  either = lambda new, old: jnp.where(gets_N.reshape(-1, *[1] * (new.ndim - 1)), new, old)
  done_R = state.results.done_BR.at[jnp.where(gets_N, new.row, len(state.results.done_BR))].set(
    False, mode="drop"
  )
  return state._replace(
    sequences=jax.tree.map(either, new, state.sequences),
    hidden_BND=either(state.prefix_BWD[new.end], state.hidden_BND),
    count_BN=jnp.where(gets_N, 0, state.count_BN),
    alive_BN=state.alive_BN | gets_N,
    results=state.results._replace(done_BR=done_R),
  ), taken + gets_N.sum()


def _step(model: Transformer, size: int, eos_id: int, params: Params, state: State) -> State:
  """Draws a token for every slot, records it, and computes the hidden state after it."""
  (B, N), sequences, count_BN, results = (
    state.alive_BN.shape,
    state.sequences,
    state.count_BN,
    state.results,
  )
  flat = lambda x: x.reshape(B * N, *x.shape[2:])
  keys_S = jax.vmap(jax.random.fold_in)(
    jax.random.wrap_key_data(flat(sequences.key)), flat(count_BN)
  )
  token_S, log_prob_S = draw(
    flat(model.logits(params, state.hidden_BND)),
    keys_S,
    jax.tree.map(flat, sequences.filters),
    size,
  )
  token_BN, log_prob_BN = token_S.reshape(B, N), log_prob_S.reshape(B, N)
  over_BN = (token_BN == eos_id) | (count_BN + 1 >= sequences.max_tokens)
  results = jax.vmap(_record)(
    results, sequences.row, count_BN, token_BN, log_prob_BN, over_BN, state.alive_BN
  )
  end_BN, time, C = sequences.end, state.time[0], results.tokens_BRC.shape[2]
  position_BN = jnp.take_along_axis(state.position_BW, end_BN, axis=1) + count_BN + 1
  places_11W = jnp.arange(state.until_BW.shape[1])[None, None]
  shared_BNW = (places_11W <= end_BN[..., None]) & (end_BN[..., None] < state.until_BW[:, None])
  age_11C = ((time - jnp.arange(C)) % C)[
    None, None
  ]  # steps since a place of the ring was written; 0 is overwritten now
  own_BNC = (age_11C > 0) & (age_11C <= count_BN[..., None])
  if window := model.cfg.window:
    shared_BNW &= position_BN[..., None] - state.position_BW[:, None] < window
    own_BNC &= age_11C < window
  hidden_BND, cache = decode_step(
    model, params, token_BN, position_BN, state.cache, Seen(shared_BNW, own_BNC), time % C
  )
  return state._replace(
    cache=cache,
    hidden_BND=hidden_BND,
    count_BN=count_BN + 1,
    alive_BN=state.alive_BN & ~over_BN,
    results=results,
    time=state.time + 1,
    used=state.used + state.alive_BN.sum(dtype=jnp.int32),
  )


def _record(results: Results, row_N, count_N, token_N, log_prob_N, over_N, alive_N) -> Results:
  """A block's new tokens in their rows; those of idle slots go nowhere."""
  row_N = jnp.where(alive_N, row_N, len(results.done_BR))
  put = lambda x, where, values: x.at[where].set(values, mode="drop")
  return Results(
    put(results.tokens_BRC, (row_N, count_N), token_N),
    put(results.log_probs_BRC, (row_N, count_N), log_prob_N),
    put(results.length_BR, row_N, count_N + 1),
    put(results.done_BR, row_N, over_N),
  )
