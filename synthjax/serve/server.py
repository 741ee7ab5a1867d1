"""The HTTP server of a session, in the OpenAI protocol: /v1/completions, /v1/chat/completions,
/v1/models and /health.
"""

import asyncio
import contextlib
import dataclasses
import hmac
import json
import os
import pathlib
import signal
import traceback

from aiohttp import web
from aiohttp.typedefs import Handler

from synthjax import files, progress
from synthjax.rollout.requests import RequestError, Result, Session
from synthjax.serve import wire
from synthjax.serve.driver import Driver, SessionError, Ticket

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# How often requests in flight are counted while the server stops.
_IDLE_POLL_SECONDS = 0.02
# For clients that do not read the answer that their request was not finished.
_LAST_ANSWER_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class ServerSettings:
  """Settings of the server.

  Attributes:
    host: address to listen on; 0.0.0.0 is every network interface.
    port: 0 is a free one.
    queue: samples waiting or in flight. A request may take half of the free room; a larger one is
      answered with status 429.
    token: env:NAME or file:PATH of the bearer token that clients must send; "": none is needed.
    drain_seconds: how long requests in flight may take to finish after SIGTERM.
    body_bytes: of the largest request.
  """

  host: str = "127.0.0.1"
  port: int = 8000
  queue: int = 8192
  token: str = ""
  drain_seconds: float = 30.0
  body_bytes: int = 4 << 20


def serve(session: Session, settings: ServerSettings, model_name: str) -> None:
  """Serves until SIGTERM or SIGINT. Call from the main thread.

  After the signal it refuses new requests, finishes those in flight and returns.

  Args:
    session: answers the requests.
    settings: of the server.
    model_name: the `model` that clients must ask for.

  Raises:
    DataError: the token cannot be read, or the address is taken.
    SessionError: the session crashed; requests in flight were answered with status 500.
  """
  token = _read_token(settings.token)
  if settings.host not in _LOOPBACK and not token:
    progress.say(
      f"warning: {settings.host} is open to the network and asks for no token; set one with "
      "env:NAME or file:PATH"
    )
  asyncio.run(_serve(session, settings, model_name, token))


def _read_token(source: str) -> str:
  kind, _, name = source.partition(":")
  token = ""
  if not source:
    return ""
  if kind == "env":
    token = os.environ.get(name, "")
  elif kind == "file":
    if pathlib.Path(name).is_file():
      token = pathlib.Path(name).read_text(encoding="utf-8").strip()
  else:
    # The source is not shown: it may be the token itself.
    raise files.DataError(
      "the token's source is of an unknown kind; expected env:NAME or file:PATH, never the token "
      "itself"
    )
  if not token:
    raise files.DataError(f"the bearer token should be read from {source}, where there is none")
  return token


async def _serve(session: Session, settings: ServerSettings, model_name: str, token: str) -> None:
  stopping = asyncio.Event()
  driver = Driver(session, crashed=stopping.set)
  server = _Server(driver, settings, model_name, token)
  app = web.Application(middlewares=[server.guard], client_max_size=settings.body_bytes)
  app.add_routes(
    [
      web.post("/v1/completions", server.completions),
      web.post("/v1/chat/completions", server.chat),
      web.get("/v1/models", server.models),
      web.get("/health", server.health),
    ]
  )
  # A client that hangs up cancels its handler, which frees its slot.
  runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
  await runner.setup()
  try:
    await _listen(runner, settings)
    for name in (signal.SIGTERM, signal.SIGINT):
      asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    progress.say(f"serving {model_name} at http://{settings.host}:{runner.addresses[0][1]}/v1")
    await stopping.wait()
    await server.drain()
  finally:
    await driver.close()
    await runner.cleanup()
  if driver.failure:
    raise driver.failure
  progress.say("server stopped")


async def _listen(runner: web.AppRunner, settings: ServerSettings) -> None:
  try:
    await web.TCPSite(runner, settings.host, settings.port).start()
  except OSError as e:
    reason = e.strerror or e
    raise files.DataError(
      f"cannot listen on {settings.host}:{settings.port}: {reason}; choose another port"
    ) from e


class _Server:
  """The HTTP handlers and what they share."""

  def __init__(self, driver: Driver, settings: ServerSettings, model_name: str, token: str):
    self.driver, self.settings, self.model, self.token = driver, settings, model_name, token
    self.draining = False

  async def drain(self) -> None:
    """Refuses new requests and waits for those in flight.

    Those that are not finished in time are answered with status 503.
    """
    self.draining = True
    driver, seconds = self.driver, self.settings.drain_seconds
    if driver.in_flight and not driver.failure:
      progress.say(
        f"stopping: {len(driver.in_flight)} requests in flight have {seconds:g} s to finish"
      )
    await self._wait_until_idle(seconds)
    if driver.in_flight:
      progress.say(f"stopping: {len(driver.in_flight)} requests were not finished in time")
      for ticket in driver.in_flight.values():
        ticket.finish(wire.Refusal(503, "the server stopped before the request was finished"))
      await self._wait_until_idle(_LAST_ANSWER_SECONDS)

  async def _wait_until_idle(self, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(seconds):
        while self.driver.in_flight:
          await asyncio.sleep(_IDLE_POLL_SECONDS)

  @web.middleware
  async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
    """Asks for the token, and gives every error the protocol's shape."""
    try:
      if self.token and request.path != "/health":
        self._authorize(request)
      return await handler(request)
    except wire.Refusal as e:
      return _refuse(e)
    except RequestError as e:
      return _refuse(wire.Refusal(400, str(e)))
    except SessionError as e:
      return _refuse(wire.Refusal(500, str(e)))
    except web.HTTPException as e:
      # aiohttp's own: no such path, another method, a body that is too large.
      message = f"{request.method} {request.path}: {e.text or e.reason}"
      return _refuse(wire.Refusal(e.status, message))
    except Exception as e:
      # A fault of ours. The client learns that it was not the request's, and no more.
      traceback.print_exc()
      return _refuse(wire.Refusal(500, f"internal error: {type(e).__name__}"))

  def _authorize(self, http: web.Request) -> None:
    kind, _, given = http.headers.get("Authorization", "").partition(" ")
    # Bytes, since compare_digest takes no other than ASCII text; its time does not depend on where
    # the two differ. A header that is no UTF-8 comes as lone surrogates: they are replaced.
    same = hmac.compare_digest(given.strip().encode(errors="replace"), self.token.encode())
    if kind.lower() != "bearer" or not same:
      raise wire.Refusal(
        401,
        "the bearer token is missing or incorrect; send it as the API key",
        code="invalid_api_key",
      )

  async def health(self, http: web.Request) -> web.Response:
    """200 while requests are accepted, else 503."""
    state, status = "ok", 200
    if self.driver.failure:
      state, status = "crashed", 503
    elif self.draining:
      state, status = "stopping", 503
    body = {
      "status": state,
      "requests": len(self.driver.in_flight),
      "samples": self.driver.samples,
    }
    return web.json_response(body, status=status)

  async def models(self, http: web.Request) -> web.Response:
    """The list of the one model."""
    model = {"id": self.model, "object": "model", "created": 0, "owned_by": "synthjax"}
    return web.json_response({"object": "list", "data": [model]})

  async def completions(self, http: web.Request) -> web.StreamResponse:
    """Completions of a prompt."""
    return await self._complete(http, chat=False)

  async def chat(self, http: web.Request) -> web.StreamResponse:
    """Completions of chat messages."""
    return await self._complete(http, chat=True)

  async def _complete(self, http: web.Request, chat: bool) -> web.StreamResponse:
    asked = wire.parse(await http.read(), self.model, chat)
    if self.draining:
      raise wire.Refusal(503, "the server is stopping")
    self._check_room(asked.request.n)
    ticket = self.driver.add(asked.request, follow=asked.stream)
    try:
      if not asked.stream:
        return web.json_response(wire.answer(asked, _check_result(await ticket.news())))
      response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
      )
      # The client may hang up at any time; then nobody is left to hear of an error.
      with contextlib.suppress(ConnectionError):
        await self._stream(http, asked, ticket, response)
      return response
    finally:
      self.driver.remove(asked.request.id)

  def _check_room(self, n: int) -> None:
    """Raises Refusal where the queue has no room for a request of `n` samples.

    A request may take half of the free room, so that a few large ones leave some for small ones.
    """
    queue = self.settings.queue
    largest = max(queue // 2, 1)
    if n > largest:
      message = f"n is {n}; this server takes at most {largest} samples a request"
      raise wire.Refusal(400, message, "n")
    waiting = self.driver.samples
    free = max(queue - waiting, 0)
    if n > free // 2 and not n == free == 1:
      raise wire.Refusal(
        429,
        f"{waiting:,} samples are waiting or in flight, of {queue:,} at most, and a request may "
        f"take half of the free room; this one asks for {n:,}: try again later",
        code="queue_full",
      )

  async def _stream(
    self,
    http: web.Request,
    asked: wire.ApiRequest,
    ticket: Ticket,
    response: web.StreamResponse,
  ) -> None:
    """Sends an answer as server-sent events.

    A fault before the first text becomes an HTTP error; a later one becomes an event, and the
    stream ends without [DONE].
    """
    sent = [""] * asked.request.n
    try:
      while (result := await ticket.news()) is None:
        for index, sample in enumerate(ticket.samples):
          text = wire.settled(sample.text, asked.request.sampling.stop)
          more = text[len(sent[index]) :]
          if more:
            await _send(http, response, wire.chunk(asked, index, more))
            sent[index] = text
      for index, sample in enumerate(_check_result(result).samples):
        if not sample.text.startswith(sent[index]):
          raise wire.Refusal(500, f"sample {index} changed after a part of it was sent")
        more = sample.text[len(sent[index]) :]
        await _send(http, response, wire.chunk(asked, index, more, sample))
      if asked.usage:
        await _send(http, response, wire.usage_chunk(asked, result))
      await response.write(b"data: [DONE]\n\n")
    except (wire.Refusal, SessionError) as e:
      if not response.prepared:
        raise
      refusal = wire.Refusal(500, str(e))
      if isinstance(e, wire.Refusal):
        refusal = e
      await _send(http, response, refusal.body())
    await response.write_eof()


def _check_result(result: Result | None) -> Result:
  if result is None:
    raise RuntimeError("a ticket that is not followed has news without a result")
  if result.error:
    raise wire.Refusal(400, result.error)
  return result


async def _send(http: web.Request, response: web.StreamResponse, event: dict) -> None:
  if not response.prepared:
    await response.prepare(http)
  await response.write(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")


def _refuse(refusal: wire.Refusal) -> web.Response:
  headers = {}
  if refusal.status in (429, 503):
    headers = {"Retry-After": "1"}
  elif refusal.status == 401:
    headers = {"WWW-Authenticate": "Bearer"}
  return web.json_response(refusal.body(), status=refusal.status, headers=headers)
