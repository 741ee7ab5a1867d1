"""Sampling that survives a kill: results of any engine go into an append-only journal.

Nothing is sampled twice. A row of the journal is request id, `Request.key()`, engine fingerprint
and result. A request is answered from the journal where it holds this key and fingerprint; for
another policy, or a changed request under an old id, it is sampled again.
"""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Iterator

from synthjax import files, multihost, progress, records
from synthjax.errors import Error
from synthjax.records import Record
from synthjax.rollout.requests import Engine, Request, Result


class UnansweredError(Error, RuntimeError):
  """An engine that ended without an answer to every request."""


@dataclasses.dataclass(frozen=True)
class Row(Record):
  """A result and what it depends on."""

  id: str  # of the first request that asked for it
  key: str  # of that request
  engine: str  # fingerprint
  result: Result


def generate(engine: Engine, requests: Iterable[Request], path: files.Path) -> Iterator[Result]:
  """Yields one result a request: those of the journal, then the others as the engine finishes them.

  Requests are read to the end before anything is sampled. Equal ones (`Request.key`) are sampled
  once and answered under every id. A result is in the journal before it is yielded; one with an
  error is not journalled, so that the next run asks again.

  Args:
    engine: samples what the journal does not hold.
    requests: with unique ids.
    path: JSONL of `Row`; created if missing. One process at a time writes to it.

  Raises:
    DataError: two requests have one id, or the journal is malformed.
    LockError: another process writes to the journal.
    UnansweredError: the engine left requests without an answer.
  """
  waiting = _by_key(requests)
  total = sum(map(len, waiting.values()))
  with files.Journal(path, progress.say, keep=False) as journal:
    yield from _journalled(journal, engine.fingerprint, waiting)
    left = sum(map(len, waiting.values()))
    if left < total:
      progress.say(f"{path}: {total - left:,} of {total:,} requests were answered before")
    key_of = {same[0].id: key for key, same in waiting.items()}
    failed = 0
    for result in engine.generate([same[0] for same in waiting.values()]):
      key = key_of[result.id]
      if result.error:
        failed += 1
      else:
        journal.append(Row(result.id, key, engine.fingerprint, result).to_json())
      yield from _for_each(result, waiting.pop(key))
    journal.sync()
  if failed:
    progress.say(
      f"{path}: {failed:,} of {len(key_of):,} different requests ended with an error; they are "
      "asked again at the next run"
    )
  if waiting:
    first = next(iter(waiting.values()))[0]
    raise UnansweredError(
      f"{engine.fingerprint} ended without an answer to {len(waiting):,} requests, the first of "
      f"them {first.id!r}; what it answered is in {path}"
    )


def together(engine: Engine, requests: Iterable[Request], path: files.Path) -> Iterator[Result]:
  """As `generate`, with the requests divided among all processes.

  Each process yields all results, ordered by the process that sampled them. Process k keeps its
  journal, and beside it what ended with an error, in files of its own: NAME.k.jsonl. A job that is
  run again by the same number of processes goes on where it was; with another number, requests
  that fall to another process are sampled again.
  """
  process, processes = multihost.share()
  if processes == 1:
    yield from generate(engine, requests, path)
    return
  path = pathlib.Path(path)
  journals = [path.with_suffix(f".{k}{path.suffix}") for k in range(processes)]
  waiting = _by_key(requests)
  mine = [same[0] for same in itertools.islice(waiting.values(), process, None, processes)]
  results = generate(engine, mine, journals[process])
  errors = (result.to_json() for result in results if result.error)
  files.write_jsonl(_errors(journals[process]), errors)
  multihost.barrier(f"{path} sampled")
  key_of = {same[0].id: key for key, same in waiting.items()}
  for journal in journals:
    for row in records.read(Row, journal):
      if row.engine == engine.fingerprint:
        yield from _for_each(row.result, waiting.pop(row.key, ()))
    for result in records.read(Result, _errors(journal)):
      yield from _for_each(result, waiting.pop(key_of[result.id], ()))
  multihost.barrier(f"{path} read")  # nobody samples again before all have read


def _for_each(result: Result, requests: Iterable[Request]) -> Iterator[Result]:
  """The result under the id of every request that it answers."""
  for request in requests:
    yield dataclasses.replace(result, id=request.id)


def _errors(journal: pathlib.Path) -> pathlib.Path:
  return journal.with_suffix(f".errors{journal.suffix}")


def _by_key(requests: Iterable[Request]) -> dict[str, list[Request]]:
  """Requests that are equal but for their id, together."""
  groups = collections.defaultdict(list)
  ids = set()
  for request in requests:
    if request.id in ids:
      raise files.DataError(
        f"two requests have the id {request.id!r}; an id is unique within a job"
      )
    ids.add(request.id)
    groups[request.key()].append(request)
  return dict(groups)


def _journalled(
  journal: files.Journal, fingerprint: str, waiting: dict[str, list[Request]]
) -> Iterator[Result]:
  """Results of earlier runs; takes what they answer out of `waiting`.

  What else the journal holds under the same ids is reported.
  """
  key_of = {}
  for key, same in waiting.items():
    for request in same:
      key_of[request.id] = key
  changed: set[str] = set()
  other_policy: set[str] = set()
  for row in records.parse(Row, journal.read(), journal.path):
    if row.engine == fingerprint and row.key in waiting:
      yield from _for_each(row.result, waiting.pop(row.key))
    if row.engine != fingerprint:
      other_policy.add(row.id)
    elif row.key != key_of.get(row.id):
      changed.add(row.id)
  left = {request.id for request in itertools.chain.from_iterable(waiting.values())}
  if again := changed & left:
    progress.say(
      f"{journal.path}: {len(again):,} requests have changed since they were answered; they are "
      "sampled again"
    )
  if again := other_policy & left - changed:
    progress.say(
      f"{journal.path}: {len(again):,} requests were answered by another policy than "
      f"{fingerprint}; they are sampled again"
    )
