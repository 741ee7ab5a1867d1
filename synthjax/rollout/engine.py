"""The rollout engine: continuous batching over slots, every shared prefix computed once.

Requests are cut into sequences, a sample each. Prompts are laid out on pages, those that begin
alike side by side; a page is computed once, and all its sequences continue from it. Between two
calls of the device the host takes out finished samples, frees their pages, fills them again and
refills the queues.

A sample depends on the policy, the prompt, the settings and the seed alone: not on its neighbours,
the number of slots or the order of the queue (up to float32 rounding where two ids are almost
equally likely).

Shapes: B blocks, N slots of a block, Q positions of a block's queue, R rows of a block's results,
P pages admitted together, T positions of a page, C own positions of a slot.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator
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
from synthjax.rollout.sequences import Asked, Counts, Room, Sequence
from synthjax.rollout.shapes import batch_shape
from synthjax.rollout.slots import Pages, Sequences, Shape
from synthjax.rollout.waiting import Batch, Lane, Turns
from synthjax.sharding import Layout, make_layout

_WINDOW = 20_000  # requests that are queued at once
# Sequences a slot in one turn. With fewer, every turn computes the prompt again for little.
_TURN = 4
# Tokens of a prompt or of a sample that an engine without a fixed shape makes room for.
_LONGEST = 8192


class JaxEngine:
  """Samples from a decoder. One thread uses it.

  Args:
    model: the decoder.
    params: as the trainer has them.
    tokenizer: of the policy.
    shape: static sizes; None: chosen from the requests, and grown where they ask for more.
    mesh: of this process's devices.
    slots: sequences that decode together, where `shape` is None.
    fair: requests take turns, so that one with few samples does not wait for one with many; for a
      session of a fixed shape. A batch is faster without: all samples of a prompt share one page.

  Raises:
    ConfigError: the model's vocabulary does not hold the tokenizer's ids.
    ValueError: `fair` without a shape.
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
    self.model = model
    self.tokenizer = tokenizer
    self.slots = slots
    self.counts = Counts()
    self.fingerprint = ""
    self._layout = make_layout(mesh or schema.Mesh(), jax.local_devices())
    self._fixed = shape
    self._shape: Any = None  # a Shape, once there is one
    self._needed = (1, 1)  # tokens of the longest prompt and of the longest sample so far
    self._asked: dict[str, Asked] = {}
    self._cancelled: set[Asked] = set()  # the device may be at work on them
    self._new: list[Sequence] = []
    self._waiting: Batch | Turns = Batch()
    self._first = 0  # samples of a request that go before the further turns of others
    self._most = 0  # sequences of a page; 0: as many as there are for each
    if fair and shape:
      self._first, self._most = shape.slots, _TURN * shape.slots
      self._waiting = Turns(self._first, self._most)
    self._queues: list[collections.deque[Sequence]] = []  # of the blocks
    self._flying: list[dict[int, Sequence]] = []  # of the blocks: row -> who has it
    self._dispatched: Any = None
    self._results: Any = None  # a Results of arrays of the host
    self.load(params)
    if shape:
      self._reshape(shape)

  def load(self, params: Params, fingerprint: str = "") -> None:
    """Takes over new weights of the same model; nothing is compiled again.

    Raises:
      RuntimeError: requests are in flight.
    """
    if self.busy:
      raise RuntimeError(
        "new weights while requests are in flight; wait until the engine is not busy"
      )
    self._params = _place(self.model, params, self._layout)
    self.fingerprint = fingerprint

  @property
  def busy(self) -> bool:
    """Whether requests are in flight."""
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

  def _window(self, requests: list[Request]) -> Iterator[Result]:
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
    asked = self._asked[request.id] = Asked(request, prompt)
    longest_prompt, longest_sample = self._needed
    self._needed = (
      max(longest_prompt, len(prompt)),
      max(longest_sample, request.sampling.max_tokens),
    )
    self._new += [Sequence(asked, number, number < self._first) for number in range(request.n)]

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
    longest_prompt = longest_sample = _LONGEST
    if self._fixed:
      longest_prompt, longest_sample = self._fixed.page_length, self._fixed.max_tokens
    for name, tokens, limit in (
      ("prompt", len(prompt), longest_prompt),
      ("max_tokens", request.sampling.max_tokens, longest_sample),
    ):
      if tokens > limit:
        raise RequestError(f"{name} is {tokens} tokens long; this engine has room for {limit}")
    return prompt

  def cancel(self, id: str) -> None:
    """Gives up a request. The next step frees what it holds, when the device is done with it."""
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
    samples = [sample or Sample("") for sample in asked.samples]
    for flying in self._flying:
      for sequence in flying.values():
        if sequence.asked is asked:
          samples[sequence.number], _ = self._sample(sequence, self._ids(sequence), over=False)
    return samples

  def step(self) -> list[Result]:
    """Takes out what the device has finished, and sets it to work again.

    The device works while the caller has the results.
    """
    began = time.monotonic()
    self._collect()
    if self._cancelled:
      self._forget()
    finished: list[Result] = []
    for flying in self._flying:
      for sequence in list(flying.values()):
        finished += self._completed(sequence)
    self._waiting.extend(self._new)
    self._new = []
    if self._asked:
      if self._fit():
        self._admit()
      self._dispatch()
    self.counts.seconds += time.monotonic() - began
    return finished

  def _fit(self) -> bool:
    """Whether all that waits has room. If not, the shape grows as soon as nothing is in flight."""
    prompt, sample = self._needed
    if self._shape and prompt <= self._shape.page_length and sample <= self._shape.max_tokens:
      return True
    if any(self._flying) or any(self._queues):
      return False
    mesh = self._layout.mesh.shape
    devices = mesh["replica"] * mesh["fsdp"]
    prompts = [sequence.asked.prompt for sequence in self._waiting]
    self._reshape(batch_shape(prompts, self._needed, self.slots, devices))
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
      Room(block, page * shape.page_length)
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
    # Sequences of a page. Rounded up from the mean, so that the last ones spread over the blocks.
    most = -(-len(self._waiting) // len(self._rooms))
    if self._most:
      most = min(most, self._most)
    while self._waiting:
      per_device = max(1, 512 // shape.page_length)  # pages computed together
      filled = self._filled_pages(most, per_device)
      if not any(filled):
        return
      pages = self._laid_out(filled, per_device)
      self._state = self._functions.admit(self._params, self._state, pages)

  def _filled_pages(self, most: int, per_device: int) -> list[list[tuple[Page, Room]]]:
    """Pages of waiting prompts by device, those of the least busy blocks first."""
    filled: list[list[tuple[Page, Room]]] = [[] for _ in range(self._functions.devices)]
    rooms = [room for room in self._rooms if room.left == 0]
    rooms.sort(key=lambda room: self._load(room.block))
    for room in rooms:
      of_device = filled[room.block // self._blocks_of_device]
      if self._waiting and len(of_device) < per_device:
        lane = self._waiting.lane(busy=self._busy(room.block))
        if lane:
          of_device.append((self._fill(room, most, lane), room))
    return filled

  def _laid_out(self, filled: list[list[tuple[Page, Room]]], per_device: int) -> Pages:
    """The pages as arrays, padded to the same number on every device."""
    P, T = per_device * len(filled), self._shape.page_length
    tokens_PT = np.zeros((P, T), np.int32)
    positions_PT = np.zeros((P, T), np.int32)
    until_PT = np.zeros((P, T), np.int32)
    until_PT[:] = np.arange(1, T + 1)
    places_P2 = np.zeros((P, 2), np.int32)
    real_P = np.zeros(P, bool)
    for device, of_device in enumerate(filled):
      for i, (page, room) in enumerate(of_device, device * per_device):
        tokens_PT[i] = page.tokens_T
        positions_PT[i] = page.positions_T
        until_PT[i] = page.until_T
        places_P2[i] = room.block % self._blocks_of_device, room.start
        real_P[i] = True
    arrays: Any = (tokens_PT, positions_PT, until_PT, places_P2, real_P)
    return Pages(*arrays)

  @property
  def _blocks_of_device(self) -> int:
    return self._shape.blocks // self._functions.devices

  def _load(self, block: int) -> int:
    return len(self._queues[block]) + len(self._flying[block])

  def _busy(self, block: int) -> bool:
    """Whether a block takes no further turns.

    It has enough to do, or it is the one of its device that is kept for new requests.
    """
    kept_free = self._blocks_of_device > 1 and block % self._blocks_of_device == 0
    return kept_free or self._load(block) > self._shape.slots

  def _fill(self, room: Room, most: int, lane: Lane) -> Page:
    """A page of the lane's next prompts for up to `most` sequences, which join the queue."""
    page = self.page(self._shape.page_length)
    while lane and room.left < most:
      sequence = lane.head
      end = page.add(sequence.asked.prompt)
      if end is None:
        break
      lane.pop()
      sequence.room = room
      sequence.end = room.start + end
      room.left += 1
      self._enqueue(sequence)
      self.counts.prompt_tokens += len(sequence.asked.prompt)
    self.counts.prefilled += page.filled
    return page

  def _enqueue(self, sequence: Sequence) -> None:
    queue = self._queues[sequence.room.block]
    place = len(queue)
    if sequence.ahead:
      place = next((i for i, other in enumerate(queue) if not other.ahead), place)
    queue.insert(place, sequence)

  def _dispatch(self) -> None:
    shape = self._shape
    B, Q = shape.blocks, shape.queue
    integers = np.zeros((4, B, Q), np.int32)
    reals = np.ones((3, B, Q), np.float32)
    key_BQ2 = np.zeros((B, Q, 2), np.uint32)
    waiting_B = np.zeros(B, np.int32)
    for block, queue in enumerate(self._queues):
      free = (row for row in range(shape.rows) if row not in self._flying[block])
      waiting_B[block] = min(Q, len(queue))
      for i in range(waiting_B[block]):
        sequence, sampling = queue[i], queue[i].asked.request.sampling
        sequence.row = next(free)
        integers[:, block, i] = sequence.end, sequence.row, sampling.max_tokens, sampling.top_k
        reals[:, block, i] = sampling.temperature, sampling.top_p, sampling.min_p
        key_BQ2[block, i] = sequence.key()
    end, row, max_tokens, top_k = integers
    temperature, top_p, min_p = reals
    filters: Any = Filters(temperature, top_k, top_p, min_p)  # type: ignore[arg-type]
    new: Any = Sequences(end, row, max_tokens, key_BQ2, filters)  # type: ignore[arg-type]
    self._state, results, taken_B = self._functions.decode(
      self._params, self._state, new, waiting_B, self._killed_BR
    )
    self._killed_BR = np.zeros_like(self._killed_BR)
    self._dispatched = results, taken_B, self._state.time, self._state.used

  def _collect(self) -> None:
    """Waits for the device, and takes over its results."""
    if self._dispatched is None:
      return
    self._results, taken_B, *now = jax.tree.map(np.asarray, self._dispatched)
    self._dispatched = None
    # In int32 the difference is exact even where a count has wrapped around.
    steps, used = np.array(now) - self._before
    self._before = np.array(now)
    # The slowest device counts: the others wait for it.
    self.counts.offered += int(steps.max()) * self._shape.blocks * self._shape.slots
    self.counts.used += int(used.sum())
    for queue, flying, taken in zip(self._queues, self._flying, taken_B):
      for _ in range(taken):
        sequence = queue.popleft()
        flying[sequence.row] = sequence

  def _completed(self, sequence: Sequence) -> list[Result]:
    """The result that this sequence completes; [] where it or another of its request goes on."""
    done = bool(self._results.done_BR[sequence.room.block, sequence.row])
    sampling = sequence.asked.request.sampling
    if not done and not sampling.stop and not sampling.stop_ids:
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
    return [asked.result()]

  def _ids(self, sequence: Sequence) -> list[int]:
    """The tokens drawn so far."""
    block, row = sequence.room.block, sequence.row
    length = self._results.length_BR[block, row]
    return self._results.tokens_BRC[block, row, :length].tolist()

  def _sample(self, sequence: Sequence, drawn: list[int], over: bool) -> tuple[Sample, bool]:
    """(the sample so far, whether a stop text or id ends it)."""
    sampling, eos_id = sequence.asked.request.sampling, self.tokenizer.eos_id
    ends = [i for i, token in enumerate(drawn) if token == eos_id or token in sampling.stop_ids]
    stopped = bool(ends)
    count = logged = len(drawn)
    if ends:
      # The id that ends a sample is not part of it, but its log-prob is kept.
      count, logged = ends[0], ends[0] + 1
    text = self.tokenizer.decode(drawn[:count])
    if any(mark in text for mark in sampling.stop):
      stopped = True
      count = logged = self._first_with_stop(drawn, sampling.stop)
      text = self.tokenizer.decode(drawn[:count])
      text = text[: min(text.find(mark) for mark in sampling.stop if mark in text)]
    log_probs = self._results.log_probs_BRC[sequence.room.block, sequence.row, :logged].tolist()
    sample = Sample(
      text=text,
      ids=tuple(drawn[:count]),
      log_probs=tuple(log_probs),
      finish="stop" if stopped or not over else "length",
    )
    return sample, stopped

  def _first_with_stop(self, drawn: list[int], stop: tuple[str, ...]) -> int:
    """The fewest tokens whose text holds a stop text, so that the host may look at any time."""
    for count in range(1, len(drawn) + 1):
      text = self.tokenizer.decode(drawn[:count])
      if any(mark in text for mark in stop):
        return count
    raise AssertionError("no stop text in the drawn tokens")

  def _free(self, sequence: Sequence, running: bool) -> None:
    """Frees a sequence's row, its part of the page, and its slot where it is still running."""
    del self._flying[sequence.room.block][sequence.row]
    self._killed_BR[sequence.room.block, sequence.row] = running
    sequence.room.left -= 1


def _place(model: Transformer, params: Params, layout: Layout) -> Params:
  """The parameters as the engine reads them.

  Heads, MLP and vocabulary are split over `tensor`; all else is copied to every device.
  """
  layout = dataclasses.replace(layout, parameters=dataclasses.replace(layout.parameters, embed=()))
  return _unstacked(model)(jax.device_put(params, layout.of(model.leaves)))


@functools.lru_cache(8)
def _unstacked(model: Transformer):
  return jax.jit(functools.partial(unstack_layers, model))
