"""A study's start policy sampled by a server that holds its checkpoint (`config.study.server`).

A cell trains its start policy here. The server is given that checkpoint and samples traces and
rollouts of it; other policies, training and evaluation stay on this machine. That the server holds
this policy is checked by its log-probs, and its samples are put into ids of the policy's tokenizer.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax.numpy as jnp

from synthjax import files, progress
from synthjax.config import schema
from synthjax.data.tokenizers import Tokenizer
from synthjax.model.transformer import Params, Transformer
from synthjax.rollout import parity
from synthjax.rollout.remote import Remote, Server, ServerError
from synthjax.rollout.requests import Request, Result, Sample

_COMPARED = 16  # answers of a stage whose log-probs are compared with the checkpoint's


@dataclasses.dataclass(frozen=True)
class Held:
  """A policy of this machine as a server should hold it."""

  name: str  # of the model there
  checkpoints: str  # folder of it here
  identity: str  # of the checkpoint
  load: Callable[[], tuple[Transformer, Params]]  # it, to compare with

  @property
  def fingerprint(self) -> str:
    """What its samples depend on; the server's address does not count."""
    return f"{self.identity} served as {self.name}"


class ServedEngine:
  """Samples of a held policy; see `rollout.requests.Engine`.

  Args:
    cfg: where the server is.
    held: what it should hold.
    tokenizer: of the policy.
  """

  def __init__(self, cfg: schema.StudyServer, held: Held, tokenizer: Tokenizer):
    self._remote = Remote(
      Server(cfg.url, held.name, key_variable=cfg.key_variable, concurrency=cfg.concurrency)
    )
    self._held, self._tokenizer = held, tokenizer
    self._checked = False
    self.fingerprint = held.fingerprint

  def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
    """Yields a result a request, its samples in ids of the tokenizer.

    Raises:
      ServerError: the server is not there, does not know the policy, or holds another one.
      DataError: a sample is no text of the tokenizer.
    """
    asked = {request.id: request for request in requests}
    if not asked:
      return
    if not self._checked:
      self._refuse_unknown()
    results: Iterator[Result] = map(self._in_ids, self._remote.generate(asked.values()))
    if not self._checked:
      first = _until_answered(results, _COMPARED)
      answered = [(asked[result.id], result) for result in first if result.samples]
      if answered:
        self._compare(answered)
        self._checked = True
      results = itertools.chain(first, results)
    samples = 0
    others = 0
    for result in results:
      samples += len(result.samples)
      others += sum(map(_are_others, result.samples))
      yield result
    if others:
      progress.say(
        f"{others:,} of {samples:,} samples of {self._held.name!r} came as text, which has "
        "another number of tokens than were sampled: they are trained on as it is written"
      )

  def _refuse_unknown(self) -> None:
    held = self._held
    names = self._remote.models()
    if held.name not in names:
      listed = ", ".join(map(repr, names)) or "none"
      raise ServerError(
        f"config.study.server.url: {self._remote.server.url} has no model {held.name!r}; it has "
        f"{listed}. Serve {held.checkpoints} under that name (synthjax serve --arm {held.name} "
        "does, with this config and work folder) and start the study again: it goes on from here"
      )

  def _in_ids(self, result: Result) -> Result:
    return dataclasses.replace(result, samples=tuple(map(self._sample_in_ids, result.samples)))

  def _sample_in_ids(self, sample: Sample) -> Sample:
    """The sample in the ids that the server names, else in those of its text."""
    ids = sample.ids
    if sample.finish == "stop" and ids[-1:] == (self._tokenizer.eos_id,):
      ids = ids[:-1]
    if not ids:
      ids = tuple(self._tokenizer.encode(sample.text))
    written = self._tokenizer.decode(ids)
    if written != sample.text:
      raise files.DataError(
        f"a sample of {self._held.name!r} at {self._remote.server.url} is {sample.text[:80]!r}, "
        f"which the study's tokenizer writes as {written[:80]!r}: the server has another "
        "tokenizer, or this one changes texts; set config.data.tokenizer to the policy's own, or "
        "let the server name "
        "tokens by their ids (vllm serve --return-tokens-as-token-ids)"
      )
    return dataclasses.replace(sample, ids=ids)

  def _compare(self, sampled: Sequence[tuple[Request, Result]]) -> None:
    """Raises ServerError where the server's log-probs are not those of the checkpoint."""
    held, url = self._held, self._remote.server.url
    comparable = []
    for request, result in sampled:
      samples = tuple(s for s in result.samples if s.log_probs and not _are_others(s))
      if samples:
        comparable.append((request, dataclasses.replace(result, samples=samples)))
    if not comparable:
      progress.say(
        f"{url} gives no log-probs that could be compared: that it holds "
        f"{held.checkpoints} was not checked"
      )
      return
    difference = parity.measure(*held.load(), comparable, self._tokenizer.eos_id)
    # What a server computes in is not known: the widest bounds.
    bounds = parity.bounds(jnp.bfloat16)
    if difference.mean > bounds.mean or difference.largest > bounds.largest:
      raise ServerError(
        f"{url}: the log-probs of {held.name!r} differ from those of {held.checkpoints} by "
        f"{difference.mean:.2g} on average and {difference.largest:.2g} at most over "
        f"{difference.tokens:,} sampled tokens, allowed are {bounds.mean:g} and "
        f"{bounds.largest:g}: it holds another policy; serve this checkpoint"
      )


def _until_answered(results: Iterator[Result], count: int) -> list[Result]:
  """The first results up to the `count`-th that is no error: errors say nothing about a policy."""
  first = []
  answered = 0
  for result in results:
    first.append(result)
    answered += bool(result.samples)
    if answered == count:
      break
  return first


def _are_others(sample: Sample) -> bool:
  """Whether the ids are not the tokens that were sampled, as far as their number tells."""
  return bool(sample.log_probs) and len(sample.log_probs) - len(sample.ids) not in (0, 1)
