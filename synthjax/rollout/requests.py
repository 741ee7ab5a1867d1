"""What is asked of an engine and what it answers: plain records, the same for every engine.

An engine answers every request: with samples, or with an `error` that says what is wrong with that request while the others go on.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol

from synthjax import files
from synthjax.config import fields
from synthjax.config.credit import Sampling
from synthjax.errors import Error
from synthjax.records import Record


class RequestError(Error, ValueError):
  """A request that cannot be served; the message names the field, what was found and what was expected."""


def check(sampling: Sampling) -> None:
  """Raises RequestError naming the first field of `sampling` that is out of range."""
  try:
    fields.checked(sampling)
  except fields.FieldError as e:
    raise RequestError(f"{e.name} is {e.value!r}; expected {e.allowed}") from e


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
  log_probs: tuple[
    float, ...
  ] = ()  # of `ids`, and of the end-of-text or stop id where one was drawn, under the untempered policy
  finish: Literal["stop", "length"] = "stop"


@dataclasses.dataclass(frozen=True)
class Result(Record):
  """The answer to a request: `n` samples in order, or an error."""

  id: str
  samples: tuple[Sample, ...] = ()
  error: str = ""
  prompt_tokens: int = 0


# An engine's `generate`, or one that keeps a journal.
Generate = Callable[[Iterable[Request]], Iterator[Result]]


class Engine(Protocol):
  """Anything that samples."""

  fingerprint: (
    str  # of the policy: checkpoint and tokenizer, or server and model name; journals keep it
  )

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
