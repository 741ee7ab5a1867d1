"""The thread that runs a session: requests reach it through an inbox, and results go back to the
server's event loop.
"""

import asyncio
import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from synthjax.errors import Error
from synthjax.rollout.requests import Request, RequestError, Result, Sample, Session

# How long the last step may take once the server has stopped. A step of a large model takes well
# under a second; only one that hangs takes longer.
_LAST_STEP_SECONDS = 10.0


class SessionError(Error, RuntimeError):
  """A session that crashed: it answers no more requests."""


class Ticket:
  """A request in flight as its HTTP handler sees it, on the event loop.

  It holds the newest state alone, so that a client that reads slowly costs no memory.

  Attributes:
    request: the request.
    follow: whether every step is reported, as a stream needs it.
    samples: the samples so far, of a request that is followed.
  """

  def __init__(self, request: Request, follow: bool):
    self.request, self.follow = request, follow
    self.samples: list[Sample] = []
    self._result: Result | Exception | None = None
    self._changed = asyncio.Event()

  async def news(self) -> Result | None:
    """Waits for a change. Returns the result, or None where there is more of `samples`.

    Raises:
      RequestError: the session cannot serve the request.
      SessionError: the session crashed.
    """
    await self._changed.wait()
    self._changed.clear()
    if isinstance(self._result, Exception):
      raise self._result
    return self._result

  def grow(self, samples: list[Sample]) -> None:
    """Replaces the samples so far."""
    self.samples = samples
    self._changed.set()

  def finish(self, result: Result | Exception) -> None:
    """Sets what `news` returns or raises from now on."""
    self._result = result
    self._changed.set()


class _Message(NamedTuple):
  """To the thread: a new ticket, the id of a request to cancel, or neither, which ends it."""

  add: Ticket | None = None
  cancel: str = ""


class Driver:
  """Runs a session in a thread of its own. Call its methods from the event loop's thread only.

  Attributes:
    failure: set once the session has crashed.
    in_flight: tickets by request id.
  """

  def __init__(self, session: Session, crashed: Callable[[], None]):
    """Starts the thread.

    Args:
      session: answers the requests.
      crashed: called on the running event loop when the session has raised; by then every request
        in flight has got a SessionError.
    """
    self._session, self._crashed = session, crashed
    self._loop = asyncio.get_running_loop()
    self._inbox = queue.SimpleQueue[_Message]()
    # Used by the thread alone: the requests that the session knows.
    self._tickets: dict[str, Ticket] = {}
    self.failure: SessionError | None = None
    self.in_flight: dict[str, Ticket] = {}
    self._thread = threading.Thread(target=self._run, name="session", daemon=True)
    self._thread.start()

  @property
  def samples(self) -> int:
    """Number of samples waiting or in flight."""
    return sum(ticket.request.n for ticket in self.in_flight.values())

  def add(self, request: Request, follow: bool) -> Ticket:
    """Queues a request; the caller calls `remove` in the end, whatever happens.

    Args:
      request: with an id that is not in flight.
      follow: report every step to the ticket.

    Raises:
      SessionError: the session crashed earlier.
    """
    if self.failure:
      raise self.failure
    ticket = self.in_flight[request.id] = Ticket(request, follow)
    self._inbox.put(_Message(add=ticket))
    return ticket

  def remove(self, id: str) -> None:
    """Forgets a request; an unfinished one is cancelled."""
    if self.in_flight.pop(id, None):
      self._inbox.put(_Message(cancel=id))

  async def close(self) -> None:
    """Cancels all requests and ends the thread after its current step.

    A step that hangs is left behind; the thread is a daemon and ends with the process.
    """
    for id in list(self.in_flight):
      self.remove(id)
    self._inbox.put(_Message())
    await asyncio.to_thread(self._thread.join, _LAST_STEP_SECONDS)

  def _run(self) -> None:
    try:
      while self._read_inbox():
        for result in self._session.step():
          self._notify(self._tickets.pop(result.id).finish, result)
        for id, ticket in self._tickets.items():
          if ticket.follow:
            self._notify(ticket.grow, self._session.partial(id))
    except Exception as e:
      # Whatever it is: without this, everyone in flight would wait for ever.
      traceback.print_exc()
      self._notify(self._crash, SessionError(f"the session crashed: {type(e).__name__}: {e}"))

  def _read_inbox(self) -> bool:
    """Handles all messages, and waits for one where the session is idle. False ends the thread."""
    while not (self._inbox.empty() and self._session.busy):
      message = self._inbox.get()
      if message.add:
        self._add(message.add)
      elif message.cancel:
        if self._tickets.pop(message.cancel, None):
          self._session.cancel(message.cancel)
      else:
        return False
    return True

  def _add(self, ticket: Ticket) -> None:
    try:
      self._session.add(ticket.request)
    except RequestError as e:
      self._notify(ticket.finish, e)
    else:
      self._tickets[ticket.request.id] = ticket

  def _notify(self, listener: Callable[[Any], None], news: Any) -> None:
    # asyncio's objects may only be touched on the loop's own thread.
    self._loop.call_soon_threadsafe(listener, news)

  def _crash(self, failure: SessionError) -> None:
    self.failure = failure
    for ticket in self.in_flight.values():
      ticket.finish(failure)
    self._crashed()
