"""Requests to an engine and its results: plain records, the same for every engine.

An engine answers every request: with samples, or with an `error` that says what is wrong with that
request, while the others go on.
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
  """A request that cannot be served; the message names the field, its value and what is allowed."""


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
  prompt_ids: tuple[int, ...] = ()  # of the prompt; take precedence over it
  sampling: Sampling = Sampling()
  n: int = 1
  seed: int = 0  # sample j of a request is drawn from (seed, j) alone

  def key(self) -> str:
    """Hash of everything but the id: equal keys have equal samples."""
    row = self.to_json()
    del row["id"]
    return files.value_hash(row)


@dataclasses.dataclass(frozen=True)
class Sample(Record):
  """One continuation of a prompt."""

  text: str  # ends before the first stop text
  # as sampled, without the end-of-text or stop id; empty from engines that give text only
  ids: tuple[int, ...] = ()
  # of `ids`, and of the end-of-text or stop id where one was drawn, under the untempered policy
  log_probs: tuple[float, ...] = ()
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

  # of the policy: checkpoint and tokenizer, or server and model name; journals keep it
  fingerprint: str

  def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
    """Yields one result a request, in the order in which they are finished."""
    ...


class Session(Protocol):
  """A running engine that takes requests at any time: what `serve` drives. One thread calls it."""

  @property
  def busy(self) -> bool:
    """Whether there is something to do."""
    ...

  def add(self, request: Request) -> None:
    """Queues a request. Raises RequestError for one that cannot be served."""
    ...

  def cancel(self, id: str) -> None:
    """Gives up a request: no result comes for it. An unknown id is ignored."""
    ...

  def step(self) -> list[Result]:
    """Decodes some tokens for everything in flight; returns the results of finished requests."""
    ...

  def partial(self, id: str) -> list[Sample]:
    """The samples of an unfinished request so far, in order; one that has not begun is empty."""
    ...
