"""What is asked of an engine and what it answers: plain records, the same for every engine.

An engine answers every request: with samples, or with an `error` that says what is wrong with that request while the others go on.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

from synthjax import files
from synthjax.records import Record


class RequestError(ValueError):
  """A request that cannot be served; the message names the field, what was found and what was expected."""


@dataclasses.dataclass(frozen=True)
class Sampling(Record):
  """How tokens are drawn. Filters apply in the order temperature, top-k, top-p, min-p."""

  max_tokens: int = 64  # of a sample
  temperature: float = 1.0  # 0: greedy
  top_k: int = 0  # only the k most probable ids; 0: all
  top_p: float = 1.0  # the fewest most probable ids that together reach this probability
  min_p: float = 0.0  # ids at least this probable relative to the most probable one
  stop: tuple[str, ...] = ()  # a sample ends before the first of these texts
  stop_ids: tuple[int, ...] = ()  # ids that end a sample, besides end-of-text

  def check(self) -> None:
    """Raises RequestError naming the first field that is out of range."""
    limits = {"max_tokens": (1, 1 << 20), "temperature": (0.0, 100.0), "top_k": (0, 1 << 30), "top_p": (1e-6, 1.0), "min_p": (0.0, 1.0)}
    for name, (low, high) in limits.items():
      if not low <= getattr(self, name) <= high:
        raise RequestError(f"{name} is {getattr(self, name)}; expected {low} to {high}")
    if not all(isinstance(mark, str) and mark for mark in self.stop):
      raise RequestError(f"stop is {list(self.stop)!r}; expected texts that are not empty")


@dataclasses.dataclass(frozen=True)
class Request(Record):
  """`n` samples after a prompt, given as text or as ids."""

  id: str  # unique within a job
  prompt: str = ""
  prompt_ids: tuple[int, ...] = ()  # of the prompt; they count where both are given
  sampling: Sampling = Sampling()
  n: int = 1
  seed: int = 0  # sample j of a request is drawn from (seed, j) alone

  def key(self) -> str:
    """Hash of everything but the id: equal keys have equal samples."""
    return files.value_hash({name: value for name, value in self.to_json().items() if name != "id"})


@dataclasses.dataclass(frozen=True)
class Sample(Record):
  """One continuation. `ids` are those sampled, without the end-of-text or stop id; `text` ends before the first stop text."""

  text: str
  ids: tuple[int, ...] = ()  # empty from engines that give text only
  log_probs: tuple[float, ...] = ()  # of `ids`, and of the end-of-text or stop id where one was drawn, under the untempered policy
  finish: Literal["stop", "length"] = "stop"


@dataclasses.dataclass(frozen=True)
class Result(Record):
  """The answer to a request: `n` samples in order, or an error."""

  id: str
  samples: tuple[Sample, ...] = ()
  error: str = ""
  prompt_tokens: int = 0


class Engine(Protocol):
  """Anything that samples."""

  fingerprint: str  # of the policy: checkpoint and tokenizer, or server and model name; journals keep it

  def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
    """Yields one result a request, in the order in which they are finished."""
    ...


class Session(Protocol):
  """A running engine that takes requests at any time: what `serve` drives. One thread calls it."""

  @property
  def busy(self) -> bool:
    """There is something to do."""
    ...

  def add(self, request: Request) -> None:
    """Queues a request. Raises RequestError for one that cannot be served."""
    ...

  def cancel(self, id: str) -> None:
    """Frees what a request holds; no result comes for it. Nothing happens where it is not known."""
    ...

  def step(self) -> list[Result]:
    """Decodes some tokens for everything in flight; returns the requests that have finished."""
    ...

  def partial(self, id: str) -> list[Sample]:
    """What the samples of an unfinished request have so far, in order; a sample that has not begun is empty."""
    ...
