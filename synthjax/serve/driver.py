"""The thread that runs a session: requests reach it through an inbox, what they get goes back to the server's event loop."""

import asyncio
import queue
import threading
import traceback
from collections.abc import Callable
from typing import NamedTuple

from synthjax.errors import Error
from synthjax.rollout.requests import Request, RequestError, Result, Sample, Session

_STEP_SECONDS = 10.0  # that the last step may take once the server has stopped


class SessionError(Error, RuntimeError):
  """A session that crashed: nothing more can be asked of it."""


class Ticket:
  """A request in flight as its HTTP handler sees it, on the event loop. It holds the newest state alone: slow readers cost no memory."""

  def __init__(self, request: Request, follow: bool):
    self.request, self.follow = request, follow
    self.samples: list[Sample] = []  # so far, where they are followed
    self._result: Result | Exception | None = None
    self._changed = asyncio.Event()

  async def news(self) -> Result | None:
    """Waits for the result, or None for more of `samples`. Raises RequestError for a request that cannot be served, SessionError."""
    await self._changed.wait()
    self._changed.clear()
    if isinstance(self._result, Exception):
      raise self._result
    return self._result

  def grow(self, samples: list[Sample]) -> None:
    self.samples = samples
    self._changed.set()

  def finish(self, result: Result | Exception) -> None:
    self._result = result
    self._changed.set()


class _Letter(NamedTuple):
  """What the inbox holds: a new ticket, the id of one that is given up, or neither, to end the thread."""

  add: Ticket | None = None
  cancel: str = ""


class Driver:
  """Runs a session in a thread of its own. Every method is for the event loop's thread."""

  def __init__(self, session: Session, crashed: Callable[[], None]):
    """`crashed` is called on the running event loop when the session has raised; every request in flight gets SessionError."""
    self._session, self._crashed = session, crashed
    self._loop = asyncio.get_running_loop()
    self._inbox = queue.SimpleQueue[_Letter]()
    self._tickets: dict[str, Ticket] = {}  # of the thread alone
    self.failure: SessionError | None = None
    self.in_flight: dict[str, Ticket] = {}
    self._thread = threading.Thread(target=self._run, name="session", daemon=True)
    self._thread.start()

  @property
  def samples(self) -> int:
    """How many samples are waiting or in flight."""
    return sum(ticket.request.n for ticket in self.in_flight.values())

  def add(self, request: Request, follow: bool) -> Ticket:
    """Queues a request; whoever calls this calls `remove` in the end. With `follow` the ticket hears of every step."""
    if self.failure:
      raise self.failure
    ticket = self.in_flight[request.id] = Ticket(request, follow)
    self._inbox.put(_Letter(add=ticket))
    return ticket

  def remove(self, id: str) -> None:
    """Forgets a request; an unfinished one is cancelled."""
    if self.in_flight.pop(id, None):
      self._inbox.put(_Letter(cancel=id))

  async def close(self) -> None:
    """Cancels what is left and ends the thread after its current step; a step that hangs is left behind."""
    for id in list(self.in_flight):
      self.remove(id)
    self._inbox.put(_Letter())
    await asyncio.to_thread(self._thread.join, _STEP_SECONDS)

  def _run(self):
    try:
      while self._read_inbox():
        for result in self._session.step():
          self._tell(self._tickets.pop(result.id).finish, result)
        for id, ticket in self._tickets.items():
          if ticket.follow:
            self._tell(ticket.grow, self._session.partial(id))
    except Exception as e:  # whatever it is, whoever waits must hear of it
      traceback.print_exc()
      self._tell(self._crash, SessionError(f"the session crashed: {type(e).__name__}: {e}"))

  def _read_inbox(self) -> bool:
    """Reads all letters, and waits for one where there is nothing to do. False: the end."""
    while not (self._inbox.empty() and self._session.busy):
      letter = self._inbox.get()
      if letter.add:
        self._add(letter.add)
      elif letter.cancel:
        if self._tickets.pop(letter.cancel, None):
          self._session.cancel(letter.cancel)
      else:
        return False
    return True

  def _add(self, ticket):
    try:
      self._session.add(ticket.request)
    except RequestError as e:
      self._tell(ticket.finish, e)
    else:
      self._tickets[ticket.request.id] = ticket

  def _tell(self, listener, what):
    self._loop.call_soon_threadsafe(listener, what)

  def _crash(self, failure):
    self.failure = failure
    for ticket in self.in_flight.values():
      ticket.finish(failure)
    self._crashed()
