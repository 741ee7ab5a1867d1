"""The HTTP server of a session: /v1/completions, /v1/chat/completions, /v1/models and /health, in the OpenAI protocol."""

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
from synthjax.rollout.requests import RequestError, Session
from synthjax.serve import wire
from synthjax.serve.driver import Driver, SessionError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of the server."""

  host: str = "127.0.0.1"  # 0.0.0.0: every network interface
  port: int = 8000  # 0: a free one
  queue: int = 8192  # samples waiting or in flight; a request may take half of what is left, else it is answered 429
  token: str = ""  # where the bearer token is read that clients must send: env:NAME or file:PATH; "": none is asked for
  drain_seconds: float = 30.0  # that requests in flight may take to finish after SIGTERM
  body_bytes: int = 4 << 20  # of a request


def serve(session: Session, settings: Settings, model_name: str) -> None:
  """Serves until SIGTERM or SIGINT: then refuses new requests, finishes those in flight and returns. Call from the main thread.

  Raises:
    DataError: the token cannot be read, or the address is taken.
    SessionError: the session crashed; what was in flight has been answered 500.
  """
  token = _token(settings.token)
  if settings.host not in _LOOPBACK and not token:
    progress.say(
      f"warning: {settings.host} is open to the network and asks for no token; set one with env:NAME or file:PATH"
    )
  asyncio.run(_serve(session, settings, model_name, token))


def _token(source: str) -> str:
  kind, _, name = source.partition(":")
  if not source:
    return ""
  if kind == "env":
    token = os.environ.get(name, "")
  elif kind == "file":
    token = (
      pathlib.Path(name).read_text(encoding="utf-8").strip() if pathlib.Path(name).is_file() else ""
    )
  else:
    raise files.DataError(
      "the token's source is of an unknown kind; expected env:NAME or file:PATH, never the token itself"
    )
  if not token:
    raise files.DataError(f"the bearer token should be read from {source}, where there is none")
  return token


async def _serve(session, settings, model_name, token):
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
    try:
      await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as e:
      raise files.DataError(
        f"cannot listen on {settings.host}:{settings.port}: {e.strerror or e}; choose another port"
      ) from e
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


class _Server:
  """The handlers and what they share."""

  def __init__(self, driver: Driver, settings: Settings, model_name: str, token: str):
    self.driver, self.settings, self.model, self.token = driver, settings, model_name, token
    self.draining = False

  async def drain(self) -> None:
    """Refuses new requests and waits for those in flight; what is not finished in time is answered 503."""
    self.draining = True
    if self.driver.in_flight and not self.driver.failure:
      progress.say(
        f"stopping: {len(self.driver.in_flight)} requests in flight have {self.settings.drain_seconds:g} s to finish"
      )
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(self.settings.drain_seconds):
        await self._idle()
    if self.driver.in_flight:
      progress.say(f"stopping: {len(self.driver.in_flight)} requests were not finished in time")
      for ticket in self.driver.in_flight.values():
        ticket.finish(wire.Refusal(503, "the server stopped before the request was finished"))
      with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):  # a client that does not read its answer
          await self._idle()

  async def _idle(self):
    while self.driver.in_flight:
      await asyncio.sleep(0.02)

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
    except web.HTTPException as e:  # no such path, another method, a body that is too large
      return _refuse(
        wire.Refusal(e.status, f"{request.method} {request.path}: {e.text or e.reason}")
      )
    except Exception as e:  # a fault of ours: the client is told that it was not his
      traceback.print_exc()
      return _refuse(wire.Refusal(500, f"internal error: {type(e).__name__}"))

  def _authorize(self, http):
    kind, _, given = http.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(
      given.strip().encode(errors="replace"), self.token.encode()
    ):
      raise wire.Refusal(
        401, "the bearer token is missing or wrong; send it as the API key", code="invalid_api_key"
      )

  async def health(self, http) -> web.Response:
    """200 while requests are taken."""
    state = "crashed" if self.driver.failure else "stopping" if self.draining else "ok"
    found = {
      "status": state,
      "requests": len(self.driver.in_flight),
      "samples": self.driver.samples,
    }
    return web.json_response(found, status=200 if state == "ok" else 503)

  async def models(self, http) -> web.Response:
    return web.json_response(
      {
        "object": "list",
        "data": [{"id": self.model, "object": "model", "created": 0, "owned_by": "synthjax"}],
      }
    )

  async def completions(self, http) -> web.StreamResponse:
    return await self._complete(http, chat=False)

  async def chat(self, http) -> web.StreamResponse:
    return await self._complete(http, chat=True)

  async def _complete(self, http, chat):
    asked = wire.parse(await http.read(), self.model, chat)
    if self.draining:
      raise wire.Refusal(503, "the server is stopping")
    self._check_room(asked.request.n)
    ticket = self.driver.add(asked.request, follow=asked.stream)
    try:
      if asked.stream:
        response = web.StreamResponse(
          headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )
        with contextlib.suppress(ConnectionError):  # the client has hung up
          await self._stream(http, asked, ticket, response)
        return response
      return web.json_response(wire.answer(asked, _good(await ticket.news())))
    finally:
      self.driver.remove(asked.request.id)

  def _check_room(self, n: int) -> None:
    """Raises Refusal where a request of `n` samples finds no room: half of what is left stays free for smaller ones."""
    queue = self.settings.queue
    if n > max(queue // 2, 1):
      raise wire.Refusal(
        400, f"n is {n}; this server takes at most {max(queue // 2, 1)} samples a request", "n"
      )
    waiting = self.driver.samples
    free = max(queue - waiting, 0)
    if n > free // 2 and not n == free == 1:
      raise wire.Refusal(
        429,
        f"{waiting:,} samples are waiting or in flight, of {queue:,} at most, and a request may take half of what "
        f"is left; this one asks for {n:,}: try again later",
        code="queue_full",
      )

  async def _stream(self, http, asked, ticket, response):
    """Server-sent events. A fault before the first text is an HTTP error; a later one is an event, and the stream ends without [DONE]."""
    sent = [""] * asked.request.n
    try:
      while (result := await ticket.news()) is None:
        for index, sample in enumerate(ticket.samples):
          text = wire.settled(sample.text, asked.request.sampling.stop)
          if len(text) > len(sent[index]):
            await _send(http, response, wire.chunk(asked, index, text[len(sent[index]) :]))
            sent[index] = text
      for index, sample in enumerate(_good(result).samples):
        if not sample.text.startswith(sent[index]):
          raise wire.Refusal(500, f"sample {index} changed after a part of it was sent")
        await _send(
          http, response, wire.chunk(asked, index, sample.text[len(sent[index]) :], sample)
        )
      if asked.usage:
        await _send(http, response, wire.usage_chunk(asked, result))
      await response.write(b"data: [DONE]\n\n")
    except (wire.Refusal, SessionError) as e:
      if not response.prepared:
        raise
      refusal = e if isinstance(e, wire.Refusal) else wire.Refusal(500, str(e))
      await _send(http, response, refusal.body())
    await response.write_eof()


def _good(result):
  if result.error:
    raise wire.Refusal(400, result.error)
  return result


async def _send(http, response, event: dict) -> None:
  if not response.prepared:
    await response.prepare(http)
  await response.write(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")


def _refuse(refusal: wire.Refusal) -> web.Response:
  headers = (
    {"Retry-After": "1"}
    if refusal.status in (429, 503)
    else {"WWW-Authenticate": "Bearer"}
    if refusal.status == 401
    else {}
  )
  return web.json_response(refusal.body(), status=refusal.status, headers=headers)
