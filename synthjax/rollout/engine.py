"""The rollout engine: continuous batching over slots, every shared prefix computed once.

Requests are cut into sequences (a sample each). Prompts are laid out on pages, those that begin alike beside each other; a page is computed
once and all its sequences go on from it. Between two calls of the device the host takes finished samples out, gives pages free,
fills them again and refills the queues.

A sample depends on the policy, the prompt, the settings and the seed alone: not on its neighbours, the number of slots or the order of the
queue (up to float32 rounding where two ids are all but equally likely).
"""

import collections
import dataclasses
import functools
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from synthjax import progress
from synthjax.config import schema
from synthjax.data.tokenizers import Tokenizer
from synthjax.errors import ConfigError
from synthjax.model.decode import unstack_layers
from synthjax.model.transformer import Params, Transformer
from synthjax.rollout import requests, slots
from synthjax.rollout.prefixes import Page
from synthjax.rollout.requests import Request, RequestError, Result, Sample
from synthjax.rollout.sampling import Filters
from synthjax.rollout.shapes import batch_shape
from synthjax.rollout.slots import Sequences, Shape
from synthjax.rollout.waiting import Batch, Lane, Turns
from synthjax.sharding import Layout, make_layout

_WINDOW = 20_000  # requests that are queued at once
_TURN = 4  # sequences a slot of a block in one turn: fewer, and every turn computes the prompt again for little
_LONGEST = 8192  # tokens of a prompt or a sample that an engine of no fixed shape makes room for


class _Asked:
  """A request whose samples are being drawn."""

  def __init__(self, request: Request, prompt: tuple[int, ...]):
    self.request, self.prompt = request, prompt
    self.samples: list[Sample | None] = [None] * request.n
    self.left = request.n


@dataclasses.dataclass(eq=False)
class _Sequence:
  """One sample of a request, waiting or in a slot."""

  asked: _Asked
  number: int
  ahead: bool = False  # goes before the further turns of other requests in its block
  room: "_Room" = None  # type: ignore[assignment]  # once it is admitted
  end: int = 0  # place in the block
  row: int = 0  # of the block's results


@dataclasses.dataclass(eq=False)
class _Room:
  """Room for a page in a block."""

  block: int
  start: int  # its first place
  left: int = 0  # sequences that still need it


@dataclasses.dataclass
class Counts:
  """What an engine has done."""

  samples: int = 0
  tokens: int = 0  # sampled
  prompt_tokens: int = 0  # of all samples together
  prefilled: int = 0  # of them computed
  used: int = 0  # slots that were decoding, summed over steps
  offered: int = 0  # slots there were, summed over steps
  compilations: int = 0
  seconds: float = 0.0

  def line(self) -> str:
    """As a person reads it."""
    occupied, reused = (
      100 * self.used / max(self.offered, 1),
      100 * (1 - self.prefilled / max(self.prompt_tokens, 1)),
    )
    return (
      f"{self.samples:,} samples, {self.tokens:,} tokens, {self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s; "
      f"slots {occupied:.1f} % occupied; {reused:.1f} % of the prompts' tokens reused; {self.compilations} compilations"
    )


class JaxEngine:
  """Samples from a decoder. One thread uses it.

  Args:
    model: the decoder.
    params: as the trainer has them.
    tokenizer: of the policy.
    shape: static sizes; None: chosen from the requests, and grown where they ask for more.
    mesh: of this process's devices.
    slots: sequences that decode together, where `shape` is None.
    fair: requests take turns, so that one with few samples does not wait for one with many; for a session of a fixed shape. A batch is
      faster without: all samples of a prompt go on from one page.

  Raises:
    ValueError: the model's vocabulary does not hold the tokenizer's ids.
  """

  page: type[Page] = Page  # how prompts are laid out

  def __init__(
    self,
    model: Transformer,
    params: Params,
    tokenizer: Tokenizer,
    shape: Shape | None = None,
    mesh: schema.Mesh | None = None,
    slots: int = 128,
    fair: bool = False,
  ):
    if fair and shape is None:
      raise ValueError("a fair engine needs a shape: turns follow from its blocks")
    if model.cfg.vocab_size < tokenizer.size:
      raise ConfigError(
        f"the model has {model.cfg.vocab_size} ids, the tokenizer {tokenizer.size}; "
        "use the tokenizer that it was trained with"
      )
    self.model, self.tokenizer, self.slots, self.counts = model, tokenizer, slots, Counts()
    self.fingerprint = ""
    self._layout = make_layout(mesh or schema.Mesh(), jax.local_devices())
    self._fixed = shape
    self._shape: Any = None  # a Shape, once there is one
    self._needed = (1, 1)  # tokens of the longest prompt and of the longest sample so far
    self._asked: dict[str, _Asked] = {}
    self._cancelled: set[_Asked] = set()  # the device may be at work on them
    self._new: list[_Sequence] = []
    self._waiting: Batch | Turns = Batch()
    self._first = 0  # samples of a request that go before the further turns of others
    self._most = 0  # sequences of a page; 0: as many as there are for each
    if fair and shape:
      self._first, self._most = shape.slots, _TURN * shape.slots
      self._waiting = Turns(self._first, self._most)
    self._queues: list[collections.deque[_Sequence]] = []  # of the blocks
    self._flying: list[dict[int, _Sequence]] = []  # of the blocks: row -> who has it
    self._dispatched: Any = None
    self._results: Any = None  # a Results of arrays of the host
    self.load(params)
    if shape:
      self._reshape(shape)

  def load(self, params: Params, fingerprint: str = "") -> None:
    """Takes over new weights of the same model: nothing is compiled again. Nothing may be in flight."""
    if self.busy:
      raise RuntimeError(
        "new weights while requests are in flight; wait until the engine is not busy"
      )
    self._params = _place(self.model, params, self._layout)
    self.fingerprint = fingerprint

  @property
  def busy(self) -> bool:
    return bool(self._asked or self._cancelled)

  def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
    """Yields one result a request, as they finish; equal requests are computed once.

    Requests are read in windows of 20,000. One that cannot be served gets a result with an error.
    """
    requests = list(requests)
    with progress.bar("sample", len(requests), "requests") as advance:
      for start in range(0, len(requests), _WINDOW):
        for result in self._window(requests[start : start + _WINDOW]):
          yield result
          advance(1)
    if requests:
      progress.say(f"sampled: {self.counts.line()}")

  def _window(self, requests: Sequence[Request]) -> Iterator[Result]:
    same: dict[str, list[str]] = {}
    for request in requests:
      key = request.key()
      if key in same:
        same[key].append(request.id)
        continue
      same[key] = [request.id]
      try:
        self.add(dataclasses.replace(request, id=key))
      except RequestError as e:
        for name in same.pop(key):
          yield Result(name, error=str(e))
    try:
      while self.busy:
        for result in self.step():
          for name in same[result.id]:
            yield dataclasses.replace(result, id=name)
    finally:  # the caller may have had enough
      for key in same:
        self.cancel(key)
      if self.busy:
        self.step()

  def add(self, request: Request) -> None:
    """Queues a request. Raises RequestError naming what is wrong with it."""
    prompt = self._check(request)
    asked = self._asked[request.id] = _Asked(request, prompt)
    self._needed = (
      max(self._needed[0], len(prompt)),
      max(self._needed[1], request.sampling.max_tokens),
    )
    self._new += [_Sequence(asked, number, number < self._first) for number in range(request.n)]

  def _check(self, request: Request) -> tuple[int, ...]:
    """The prompt's ids."""
    requests.check(request.sampling)
    if request.id in self._asked:
      raise RequestError(f"id {request.id!r} is in use by another request")
    if request.n < 1:
      raise RequestError(f"n is {request.n}; expected at least 1")
    try:
      prompt = tuple(request.prompt_ids) or tuple(self.tokenizer.encode(request.prompt))
    except ValueError as e:  # words that the tokenizer does not know, text that is not Unicode
      raise RequestError(f"prompt: {e}") from e
    if not prompt:
      raise RequestError("prompt is empty; expected at least one token")
    for name, ids in (("prompt_ids", prompt), ("stop_ids", request.sampling.stop_ids)):
      if ids and not 0 <= min(ids) <= max(ids) < self.tokenizer.size:
        raise RequestError(
          f"{name} span {min(ids)} to {max(ids)}; expected ids from 0 to {self.tokenizer.size - 1}"
        )
    longest = (
      (self._fixed.page_length, self._fixed.max_tokens) if self._fixed else (_LONGEST, _LONGEST)
    )
    for name, found, limit in (
      ("prompt", len(prompt), longest[0]),
      ("max_tokens", request.sampling.max_tokens, longest[1]),
    ):
      if found > limit:
        raise RequestError(f"{name} is {found} tokens long; this engine has room for {limit}")
    return prompt

  def cancel(self, id: str) -> None:
    """Gives a request up; what it holds is freed by the next step, when the device is not at work on it."""
    if asked := self._asked.pop(id, None):
      self._cancelled.add(asked)

  def _forget(self) -> None:
    """Frees what cancelled requests hold. The device must have been collected."""
    gone, self._cancelled = self._cancelled, set()
    self._new = [s for s in self._new if s.asked not in gone]
    self._waiting.remove(gone)
    for block, flying in enumerate(self._flying):
      for sequence in [s for s in self._queues[block] if s.asked in gone]:
        self._queues[block].remove(sequence)
        sequence.room.left -= 1
      for sequence in [s for s in flying.values() if s.asked in gone]:
        self._free(sequence, running=True)

  def partial(self, id: str) -> list[Sample]:
    """What the samples of an unfinished request have so far."""
    asked = self._asked[id]
    found = [sample or Sample("") for sample in asked.samples]
    for flying in self._flying:
      for sequence in flying.values():
        if sequence.asked is asked:
          found[sequence.number] = self._sample(sequence, self._ids(sequence), over=False)[0]
    return found

  def step(self) -> list[Result]:
    """Takes out what the device has finished and sets it to work again; while it works the caller has the results."""
    began = time.monotonic()
    self._collect()
    if self._cancelled:
      self._forget()
    finished = [
      result
      for flying in self._flying
      for sequence in list(flying.values())
      for result in self._look(sequence)
    ]
    self._waiting.extend(self._new)
    self._new = []
    if self._asked:
      if self._fit():
        self._admit()
      self._dispatch()
    self.counts.seconds += time.monotonic() - began
    return finished

  def _fit(self) -> bool:
    """Whether all that waits has room. The shape grows where it has not, once nothing is in flight."""
    if (
      self._shape
      and self._needed[0] <= self._shape.page_length
      and self._needed[1] <= self._shape.max_tokens
    ):
      return True
    if any(self._flying) or any(self._queues):
      return False
    mesh = self._layout.mesh.shape
    self._reshape(
      batch_shape(
        [s.asked.prompt for s in self._waiting],
        self._needed,
        self.slots,
        mesh["replica"] * mesh["fsdp"],
      )
    )
    return True

  def _reshape(self, shape: Shape) -> None:
    self._shape = shape
    mesh = self._layout.mesh
    misses = slots.functions.cache_info().misses
    self._functions = slots.functions(
      self.model, shape, mesh, self.tokenizer.size, self.tokenizer.eos_id
    )
    self.counts.compilations += 2 * (slots.functions.cache_info().misses - misses)
    self._state = self._functions.empty()
    self._rooms = [
      _Room(block, page * shape.page_length)
      for page in range(shape.pages)
      for block in range(shape.blocks)
    ]
    self._queues = [collections.deque() for _ in range(shape.blocks)]
    self._flying = [{} for _ in range(shape.blocks)]
    self._killed_BR = np.zeros((shape.blocks, shape.rows), bool)
    self._before = np.zeros((2, self._functions.devices), np.int32)

  def _admit(self) -> None:
    """Fills free pages with the prompts that wait."""
    shape = self._shape
    blocks_of_device = shape.blocks // self._functions.devices
    most = -(
      -len(self._waiting) // len(self._rooms)
    )  # sequences of a page: the last ones are spread over the blocks
    if self._most:
      most = min(most, self._most)
    while self._waiting:
      made: list[list[tuple[Page, _Room]]] = [[] for _ in range(self._functions.devices)]
      per_device = max(1, 512 // shape.page_length)
      rooms = sorted(
        (room for room in self._rooms if room.left == 0), key=lambda room: self._load(room.block)
      )
      for room in rooms:
        device = made[room.block // blocks_of_device]
        if self._waiting and len(device) < per_device:
          lane = self._waiting.lane(busy=self._busy(room.block))
          if lane:
            device.append((self._fill(room, most, lane), room))
      if not any(made):
        return
      P = per_device * len(made)
      tokens_PT, positions_PT, until_PT = (
        np.zeros((P, shape.page_length), np.int32) for _ in range(3)
      )
      places_P2, real_P = np.zeros((P, 2), np.int32), np.zeros(P, bool)
      until_PT[:] = np.arange(1, shape.page_length + 1)
      for number, pages in enumerate(made):
        for i, (page, room) in enumerate(pages, number * per_device):
          tokens_PT[i], positions_PT[i], until_PT[i], real_P[i] = (
            page.tokens_T,
            page.positions_T,
            page.until_T,
            True,
          )
          places_P2[i] = room.block % blocks_of_device, room.start
      self._state = self._functions.admit(
        self._params, self._state, tokens_PT, positions_PT, until_PT, places_P2, real_P
      )

  def _load(self, block: int) -> int:
    return len(self._queues[block]) + len(self._flying[block])

  def _busy(self, block: int) -> bool:
    """Whether a block is not for further turns: it has enough to do, or is the one of its device that is kept for new requests."""
    blocks_of_device = self._shape.blocks // self._functions.devices
    kept_free = blocks_of_device > 1 and block % blocks_of_device == 0
    return kept_free or self._load(block) > self._shape.slots

  def _fill(self, room: _Room, most: int, lane: Lane) -> Page:
    """A page of the lane's next prompts for up to that many sequences, which join the block's queue."""
    page = self.page(self._shape.page_length)
    while lane and room.left < most:
      sequence = lane.head
      end = page.add(sequence.asked.prompt)
      if end is None:
        break
      lane.pop()
      sequence.room, sequence.end, room.left = room, room.start + end, room.left + 1
      self._enqueue(sequence)
      self.counts.prompt_tokens += len(sequence.asked.prompt)
    self.counts.prefilled += page.filled
    return page

  def _enqueue(self, sequence: _Sequence) -> None:
    queue = self._queues[sequence.room.block]
    place = len(queue)
    if sequence.ahead:
      place = next((i for i, other in enumerate(queue) if not other.ahead), place)
    queue.insert(place, sequence)

  def _dispatch(self) -> None:
    shape = self._shape
    B, Q = shape.blocks, shape.queue
    integers, reals = np.zeros((4, B, Q), np.int32), np.ones((3, B, Q), np.float32)
    key_BQ2, waiting_B = np.zeros((B, Q, 2), np.uint32), np.zeros(B, np.int32)
    for block, queue in enumerate(self._queues):
      free = (row for row in range(shape.rows) if row not in self._flying[block])
      waiting_B[block] = min(Q, len(queue))
      for i in range(waiting_B[block]):
        sequence, how = queue[i], queue[i].asked.request.sampling
        sequence.row = next(free)
        integers[:, block, i] = sequence.end, sequence.row, how.max_tokens, how.top_k
        reals[:, block, i] = how.temperature, how.top_p, how.min_p
        key_BQ2[block, i] = _key(sequence)
    end, row, max_tokens, top_k = integers
    temperature, top_p, min_p = reals
    new: Any = Sequences(end, row, max_tokens, key_BQ2, Filters(temperature, top_k, top_p, min_p))  # type: ignore[arg-type]
    self._state, results, taken_B = self._functions.decode(
      self._params, self._state, new, waiting_B, self._killed_BR
    )
    self._killed_BR = np.zeros_like(self._killed_BR)
    self._dispatched = results, taken_B, self._state.time, self._state.used

  def _collect(self) -> None:
    """Waits for the device, and takes over what it has done."""
    if self._dispatched is None:
      return
    self._results, taken_B, *now = jax.tree.map(np.asarray, self._dispatched)
    self._dispatched = None
    steps, used = np.array(now) - self._before  # int32: right even where a count has wrapped around
    self._before = np.array(now)
    # Devices wait for the slowest one.
    self.counts.offered += int(steps.max()) * self._shape.blocks * self._shape.slots
    self.counts.used += int(used.sum())
    for queue, flying, taken in zip(self._queues, self._flying, taken_B):
      for _ in range(taken):
        sequence = queue.popleft()
        flying[sequence.row] = sequence

  def _look(self, sequence: _Sequence) -> list[Result]:
    """The sequence's request, where this sample was its last one."""
    done = bool(self._results.done_BR[sequence.room.block, sequence.row])
    how = sequence.asked.request.sampling
    if not done and not how.stop and not how.stop_ids:
      return []
    sample, stopped = self._sample(sequence, self._ids(sequence), done)
    if not done and not stopped:
      return []
    self._free(sequence, running=not done)
    asked = sequence.asked
    asked.samples[sequence.number] = sample
    asked.left -= 1
    self.counts.samples += 1
    self.counts.tokens += len(sample.log_probs)
    if asked.left:
      return []
    del self._asked[asked.request.id]
    return [
      Result(
        asked.request.id, tuple(s for s in asked.samples if s), prompt_tokens=len(asked.prompt)
      )
    ]

  def _ids(self, sequence: _Sequence) -> list[int]:
    block = sequence.room.block
    return self._results.tokens_BRC[
      block, sequence.row, : self._results.length_BR[block, sequence.row]
    ].tolist()

  def _sample(self, sequence: _Sequence, drawn: list[int], over: bool) -> tuple[Sample, bool]:
    """(the sample as far as it has come, whether a stop text or id ends it)."""
    how, eos_id = sequence.asked.request.sampling, self.tokenizer.eos_id
    ends = [i for i, token in enumerate(drawn) if token == eos_id or token in how.stop_ids]
    count, logged = (ends[0], ends[0] + 1) if ends else (len(drawn), len(drawn))
    text, stopped = self.tokenizer.decode(drawn[:count]), bool(ends)
    if any(mark in text for mark in how.stop):
      # The fewest tokens whose text holds a stop text: whenever the host looks, the sample is the same.
      count = logged = next(
        n
        for n in range(1, count + 1)
        if any(mark in self.tokenizer.decode(drawn[:n]) for mark in how.stop)
      )
      text, stopped = self.tokenizer.decode(drawn[:count]), True
      text = text[: min(text.find(mark) for mark in how.stop if mark in text)]
    log_probs = self._results.log_probs_BRC[sequence.room.block, sequence.row, :logged].tolist()
    return Sample(
      text, tuple(drawn[:count]), tuple(log_probs), "stop" if stopped or not over else "length"
    ), stopped

  def _free(self, sequence: _Sequence, running: bool) -> None:
    """Gives back a sequence's row, and its slot where it is still running."""
    del self._flying[sequence.room.block][sequence.row]
    self._killed_BR[sequence.room.block, sequence.row] = running
    sequence.room.left -= 1


def _place(model: Transformer, params: Params, layout: Layout) -> Params:
  """The parameters as the engine reads them: heads, MLP and vocabulary split over `tensor`, copies everywhere else."""
  layout = dataclasses.replace(layout, parameters=dataclasses.replace(layout.parameters, embed=()))
  return _unstacked(model)(jax.device_put(params, layout.of(model.leaves)))


@functools.lru_cache(8)
def _unstacked(model: Transformer):
  return jax.jit(functools.partial(unstack_layers, model))


def _key(sequence: _Sequence) -> tuple[int, int]:
  """Of a sample's random numbers: from its seed, its prompt and its number alone."""
  seed = sequence.asked.request.seed
  return zlib.crc32(
    np.array(
      [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, *sequence.asked.prompt], np.uint32
    ).tobytes()
  ), sequence.number
