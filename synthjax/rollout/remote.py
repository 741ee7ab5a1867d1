"""An engine over any server of the OpenAI protocol: vLLM, SGLang, JetStream, `synthjax serve`, ...

The `openai` client retries transient failures (time-outs, cut connections, 408, 409, 429, 5xx)
with exponential back-off and jitter, and waits as long as `Retry-After` says, up to two minutes. A
failure that lasts is the error of its request.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import os
import queue
import re
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from synthjax import files
from synthjax.errors import Error
from synthjax.rollout import requests
from synthjax.rollout.requests import Request, RequestError, Result, Sample

_LOST = 16  # requests in a row without an answer, at least, before a server counts as gone


@dataclasses.dataclass(frozen=True)
class Server:
  """Where to ask, and how patiently."""

  url: str  # with the version: http://127.0.0.1:8000/v1
  model: str  # as the server calls it
  chat: bool = False  # /chat/completions, the prompt as one message of the user; else /completions
  # environment variable that holds the API key; "": the server needs none
  key_variable: str = ""
  concurrency: int = 64  # requests in flight
  seconds: float = 600.0  # to wait for an answer to each attempt
  # of one request; about 40 s in all where the server does not say how long to wait
  retries: int = 8
  log_probs: bool = True  # whether to ask for those of the sampled tokens


class ServerError(Error, RuntimeError):
  """The server is gone or refuses everything that is asked."""


class _Answer(NamedTuple):
  """What came of a request."""

  result: Result
  reached: bool  # the server answered at all


class Remote:
  """The engine of a server; see `requests.Engine`.

  Its `fingerprint` is the server's address and the model's name.

  Raises:
    DataError: the address is malformed or holds a password, or the key's environment variable is
      not set.
  """

  def __init__(self, server: Server):
    address = urllib.parse.urlsplit(server.url)
    complete = address.scheme in ("http", "https") and address.hostname
    if not complete or address.username or address.password or address.query:
      raise files.DataError(
        f"the server's address has scheme {address.scheme!r} and host {address.hostname!r}; "
        "expected http://HOST:PORT/v1 without a user name, a password or a query; a key goes into "
        "an environment variable"
      )
    if server.key_variable and not os.environ.get(server.key_variable):
      raise files.DataError(
        f"environment variable {server.key_variable} is not set; it should hold the API key of "
        f"{server.url}"
      )
    self.server = server
    self.fingerprint = f"{server.url.rstrip('/')} {server.model}"
    if server.chat:
      self.fingerprint += " chat"

  def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
    """Yields one result a request, as they are answered; `server.concurrency` are in flight.

    Raises:
      ServerError: the server refuses the key or does not know the model or the path, or several
        requests in a row got no answer.
    """
    answered: queue.SimpleQueue = queue.SimpleQueue()
    left = iter(requests)
    flying = lost = 0
    with _loop() as loop, self._client(loop) as client:
      while True:
        for request in itertools.islice(left, self.server.concurrency - flying):
          future = asyncio.run_coroutine_threadsafe(self._answer(client, request), loop)
          future.add_done_callback(answered.put)
          flying += 1
        if not flying:
          return
        result, reached = answered.get().result()
        flying -= 1
        lost += 1
        if reached:
          lost = 0
        # More than are in flight: then the requests are not to blame.
        if lost > max(_LOST, self.server.concurrency):
          raise ServerError(
            f"{self.server.url}: {lost} requests on end got no answer; is the server up? The last "
            f"one: {result.error}"
          )
        yield result

  def models(self) -> list[str]:
    """Names of the models that the server has.

    Raises:
      ServerError: it does not answer, or refuses the key.
    """
    import openai

    async def ask(client) -> list[str]:
      return [model.id async for model in client.with_options(max_retries=1).models.list()]

    with _loop() as loop, self._client(loop) as client:
      try:
        return asyncio.run_coroutine_threadsafe(ask(client), loop).result()
      except openai.APIError as e:
        raise ServerError(
          f"{self.server.url} does not say which models it has ({e}); is the server up?"
        ) from e

  @contextlib.contextmanager
  def _client(self, loop) -> Iterator[Any]:
    import openai

    key = "none"  # the client wants one
    if self.server.key_variable:
      key = os.environ[self.server.key_variable]
    client = openai.AsyncOpenAI(
      api_key=key,
      base_url=self.server.url,
      timeout=self.server.seconds,
      max_retries=self.server.retries,
    )
    try:
      yield client
    finally:
      asyncio.run_coroutine_threadsafe(_close(client), loop).result()

  async def _answer(self, client, request: Request) -> _Answer:
    import openai

    completions = client.completions
    if self.server.chat:
      completions = client.chat.completions
    try:
      completion = await completions.create(**self._body(request))
      return _Answer(_read(completion, request), True)
    except (openai.AuthenticationError, openai.NotFoundError) as e:
      raise ServerError(
        f"{self.server.url} refuses the key, the path or model {self.server.model!r}: {e}"
      ) from e
    except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as e:
      cause = f" ({e.__cause__!r})" if e.__cause__ else ""
      error = f"no answer, asked up to {self.server.retries + 1} times: {e}{cause}"
      return _Answer(Result(request.id, error=error), False)
    except openai.APIStatusError as e:
      error = f"the server refuses the request: {e}"
    except RequestError as e:
      error = str(e)
    except UnicodeEncodeError as e:
      error = f"the prompt or a stop text is not valid Unicode: {e.reason} at character {e.start}"
    # These are what reading an answer that breaks the protocol raises, in the client or here.
    except (ValueError, TypeError, AttributeError) as e:
      error = f"the server's answer is malformed: {type(e).__name__}: {e}"
    return _Answer(Result(request.id, error=error), True)

  def _body(self, request: Request) -> dict:
    """Arguments of the client's call.

    Fields outside the protocol, which vLLM and SGLang know, are sent only where they are set.
    """
    sampling = request.sampling
    requests.check(sampling)
    if request.n < 1:
      raise RequestError(f"n is {request.n}; expected 1 or more")
    if self.server.chat and request.prompt_ids:
      raise RequestError("prompt_ids cannot be sent to a chat endpoint; give the prompt as text")
    body: dict[str, Any] = {
      "model": self.server.model,
      "n": request.n,
      "seed": request.seed,
      "max_tokens": sampling.max_tokens,
      "temperature": sampling.temperature,
      "top_p": sampling.top_p,
    }
    if sampling.stop:
      body["stop"] = list(sampling.stop)
    if self.server.chat:
      body["messages"] = [{"role": "user", "content": request.prompt}]
    else:
      body["prompt"] = list(request.prompt_ids) or request.prompt
    if self.server.log_probs and self.server.chat:
      body["logprobs"] = True
    elif self.server.log_probs:
      body["logprobs"] = 1  # how many a position; the other endpoint takes a boolean
    more = {
      "top_k": sampling.top_k,
      "min_p": sampling.min_p,
      "stop_token_ids": list(sampling.stop_ids),
    }
    body["extra_body"] = {name: value for name, value in more.items() if value}
    return body


def _read(completion, request: Request) -> Result:
  """The result in an answer.

  The client checks no types: whatever is wrong raises ValueError, TypeError or AttributeError here.
  """
  if isinstance(completion, str):
    raise ValueError(f"not JSON, it begins {completion[:80]!r}")
  choices = sorted(completion.choices or (), key=lambda choice: choice.index)
  if [choice.index for choice in choices] != list(range(request.n)):
    error = f"the server answered with {len(choices)} samples, expected {request.n}"
    return Result(request.id, error=error)
  samples = tuple(_sample(choice) for choice in choices)
  prompt_tokens = 0
  if completion.usage:
    prompt_tokens = int(completion.usage.prompt_tokens)
  return Result(request.id, samples, prompt_tokens=prompt_tokens)


def _sample(choice) -> Sample:
  message = getattr(choice, "message", None)
  text = message.content if message else choice.text
  if not isinstance(text, str) or choice.finish_reason not in ("stop", "length"):
    raise ValueError(
      f"sample {choice.index} has finish reason {choice.finish_reason!r} and text "
      f"{str(text)[:80]!r}; expected stop or length and a text"
    )
  log_probs: Iterable[float] = ()
  tokens: Sequence[str] = ()
  if choice.logprobs and message:
    log_probs = [token.logprob for token in choice.logprobs.content or ()]
    tokens = [token.token for token in choice.logprobs.content or ()]
  elif choice.logprobs:
    log_probs = choice.logprobs.token_logprobs or ()
    tokens = choice.logprobs.tokens or ()
  return Sample(text, _ids(tokens), tuple(map(float, log_probs)), choice.finish_reason)


def _ids(tokens: Sequence[str]) -> tuple[int, ...]:
  """Ids of tokens that are named as `token_id:17`; () where some are not.

  `synthjax serve` names them so, with `end` for what ends a sample; vLLM does where it is told to.
  """
  if tokens and tokens[-1] == "end":
    tokens = tokens[:-1]
  ids = []
  for token in tokens:
    match = re.fullmatch(r"token_id:(\d+)", token)
    if not match:
      return ()
    ids.append(int(match[1]))
  return tuple(ids)


async def _close(client) -> None:
  """Cancels what is in flight, then closes the connections."""
  tasks = asyncio.all_tasks() - {asyncio.current_task()}
  for task in tasks:
    task.cancel()
  await asyncio.gather(*tasks, return_exceptions=True)
  await client.close()


@contextlib.contextmanager
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
  """An event loop in a thread.

  Requests go on while the caller works on a result, and the caller may be in a loop of its own.
  """
  loop = asyncio.new_event_loop()
  thread = threading.Thread(target=loop.run_forever, name="remote engine", daemon=True)
  thread.start()
  try:
    yield loop
  finally:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
