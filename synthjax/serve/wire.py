"""Bodies of the OpenAI protocol: JSON becomes a `Request`, samples become an answer, whole or in
chunks.

Beyond the protocol, as in vLLM: `top_k`, `min_p`, `stop_token_ids`. A request without a seed gets
a random one. In log-probs a token is called `token_id:17`, and the end-of-text or stop token, which
is not part of the text, is called `end`. The tokenizers here have no chat template: the contents of
chat messages are joined by blank lines, whatever their roles.
"""

import dataclasses
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from synthjax.config.credit import Sampling
from synthjax.rollout import requests
from synthjax.rollout.requests import Request, RequestError, Result, Sample

FieldTypes = type | tuple[type, ...]

# Of one request.
_MAX_SAMPLES = 1024
_NUMBER = (int, float)
# Fields of both endpoints. A field that is null counts as absent.
_FIELDS: dict[str, FieldTypes] = {
  "model": str,
  "n": int,
  "seed": int,
  "stop": (str, list),
  "stop_token_ids": list,
  "max_tokens": int,
  "temperature": _NUMBER,
  "top_p": _NUMBER,
  "top_k": int,
  "min_p": _NUMBER,
  "stream": bool,
  "stream_options": dict,
  "user": str,
}
_COMPLETION_FIELDS: dict[str, FieldTypes] = {**_FIELDS, "prompt": (str, list), "logprobs": int}
_CHAT_FIELDS: dict[str, FieldTypes] = {
  **_FIELDS,
  "messages": list,
  "max_completion_tokens": int,
  "logprobs": bool,
}
# Options that are not supported, each with the values that ask for nothing: clients and frameworks
# send them all the time, and need no error for them.
_UNSUPPORTED: dict[str, tuple] = {
  "echo": (False,),
  "frequency_penalty": (0,),
  "presence_penalty": (0,),
  "logit_bias": ({},),
  "best_of": (1,),
  "suffix": ("",),
  "top_logprobs": (0,),
  "tools": ([],),
  "response_format": ({"type": "text"},),
}


class Refusal(Exception):
  """An HTTP error in the protocol's shape."""

  def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
    super().__init__(message)
    self.status, self.param, self.code = status, param, code

  def body(self) -> dict:
    """The error as JSON."""
    kind = "server_error"
    # A full queue (429) is the server's state, not a mistake in the request.
    if self.status < 500 and self.status != 429:
      kind = "invalid_request_error"
    return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class ApiRequest:
  """A request for the engine, and how the client wants it answered.

  Attributes:
    request: for the engine.
    model: name of the model, as the client gave it.
    chat: asked of the chat endpoint.
    stream: answer in chunks.
    log_probs: with the log-probs of sampled tokens.
    usage: with a last chunk of a stream that counts the tokens.
    created: seconds since 1970.
  """

  request: Request
  model: str
  chat: bool
  stream: bool
  log_probs: bool
  usage: bool
  created: int


def parse(text: bytes, model: str, chat: bool) -> ApiRequest:
  """The request in a body.

  Args:
    text: the body.
    model: name of the only model.
    chat: the body was sent to the chat endpoint.

  Raises:
    Refusal: malformed, another model, an incorrect type or value, or an unsupported option.
  """
  body = _read_object(text)
  fields, id_prefix, prompt_field = _COMPLETION_FIELDS, "cmpl-", "prompt"
  if chat:
    fields, id_prefix, prompt_field = _CHAT_FIELDS, "chatcmpl-", "messages"
  for name, value in body.items():
    _check_field(name, value, fields)
  for name in ("model", prompt_field):
    if name not in body:
      raise Refusal(400, f"{name} is missing", name)
  _check_values(body, model)
  if chat:
    prompt, prompt_ids = _read_prompt(_join_messages(body["messages"]))
  else:
    prompt, prompt_ids = _read_prompt(body["prompt"])
  request = Request(
    id=id_prefix + secrets.token_hex(16),
    prompt=prompt,
    prompt_ids=prompt_ids,
    sampling=_read_sampling(body),
    n=body.get("n", 1),
    seed=body.get("seed", secrets.randbits(31)),
  )
  return ApiRequest(
    request=request,
    model=model,
    chat=chat,
    stream=body.get("stream", False),
    # A count for completions, where 0 asks for those of the sampled token, and a bool for chat.
    log_probs=body.get("logprobs", False) is not False,
    usage=bool(body.get("stream_options", {}).get("include_usage")),
    created=int(time.time()),
  )


def _read_object(text: bytes) -> dict:
  try:
    body = json.loads(text)
    # Half a surrogate pair is valid JSON, but encoding fails: no tokenizer could read it.
    json.dumps(body, ensure_ascii=False).encode()
  except (ValueError, RecursionError) as e:
    raise Refusal(400, f"the body is not valid JSON: {e}") from e
  if not isinstance(body, dict):
    raise Refusal(400, f"the body is a JSON {type(body).__name__}; expected an object")
  return {name: value for name, value in body.items() if value is not None}


def _check_field(name: str, value: Any, fields: Mapping[str, FieldTypes]) -> None:
  if name in fields:
    expected = fields[name]
    if not isinstance(expected, tuple):
      expected = (expected,)
    # In Python a bool is an int; in JSON it is not.
    stray_bool = isinstance(value, bool) and bool not in expected
    if stray_bool or not isinstance(value, expected):
      names = " or ".join(t.__name__ for t in expected)
      kind = type(value).__name__
      message = f"{name} is {str(value)[:60]!r}, of type {kind}; expected {names}"
      raise Refusal(400, message, name)
  elif name not in _UNSUPPORTED:
    known = ", ".join(sorted(fields))
    raise Refusal(400, f"{name} is not an option of this endpoint; it knows {known}", name)
  elif value not in _UNSUPPORTED[name]:
    raise Refusal(400, f"{name} is not supported; leave it out", name)


def _check_values(body: dict, model: str) -> None:
  if body["model"] != model:
    message = f"there is no model {body['model']!r}; this server has {model!r}"
    raise Refusal(404, message, "model", "model_not_found")
  log_probs, n, seed = body.get("logprobs", 0), body.get("n", 1), body.get("seed", 0)
  if not 0 <= log_probs <= 1:
    message = (
      f"logprobs is {log_probs}; expected 0 or 1: only those of the sampled tokens are known"
    )
    raise Refusal(400, message, "logprobs")
  if not 1 <= n <= _MAX_SAMPLES:
    raise Refusal(400, f"n is {n}; expected 1 to {_MAX_SAMPLES}", "n")
  # JAX's keys take a signed 32-bit seed.
  if not 0 <= seed < 1 << 31:
    raise Refusal(400, f"seed is {seed}; expected 0 to {(1 << 31) - 1}", "seed")


def _read_prompt(prompt: str | list) -> tuple[str, tuple[int, ...]]:
  """(text, token ids), one of them empty."""
  if isinstance(prompt, str):
    return prompt, ()
  if len(prompt) == 1 and isinstance(prompt[0], str | list):
    return _read_prompt(prompt[0])
  if not prompt or not all(type(token) is int for token in prompt):
    message = (
      f"prompt is a list of {len(prompt)}; expected one text, or one list of token ids: "
      "one prompt a request"
    )
    raise Refusal(400, message, "prompt")
  return "", tuple(prompt)


def _join_messages(messages: list) -> str:
  texts = []
  for number, message in enumerate(messages):
    content = None
    if isinstance(message, dict):
      content = message.get("content")
    parts: list[Any] = [{"type": "text", "text": content}]
    if isinstance(content, list):
      parts = content
    for part in parts:
      is_text = isinstance(part, dict) and part.get("type") == "text"
      if not is_text or not isinstance(part.get("text"), str):
        raise Refusal(400, f"messages[{number}] has no content that is text", "messages")
      texts.append(part["text"])
  return "\n\n".join(texts)


def _read_sampling(body: dict) -> Sampling:
  values = {}
  for name in ("max_tokens", "temperature", "top_k", "top_p", "min_p"):
    if name in body:
      values[name] = body[name]
  if "max_completion_tokens" in body:
    values["max_tokens"] = body["max_completion_tokens"]
  stop, stop_ids = body.get("stop", ()), body.get("stop_token_ids", ())
  if isinstance(stop, str):
    stop = (stop,)
  if not all(type(token) is int for token in stop_ids):
    message = f"stop_token_ids is {str(stop_ids)[:60]}; expected a list of int"
    raise Refusal(400, message, "stop_token_ids")
  sampling = Sampling(**values, stop=tuple(stop), stop_ids=tuple(stop_ids))
  try:
    requests.check(sampling)
  except RequestError as e:
    # The message begins with the field, such as "top_p is 2" or "stop[0] is ''".
    field = str(e).partition(" ")[0].partition("[")[0]
    raise Refusal(400, str(e), field) from e
  # Only now: an int of 400 digits is refused above with its name, and float() of it would raise.
  return dataclasses.replace(
    sampling,
    temperature=float(sampling.temperature),
    top_p=float(sampling.top_p),
    min_p=float(sampling.min_p),
  )


def answer(asked: ApiRequest, result: Result) -> dict:
  """The whole answer to a request."""
  choices = []
  for index, sample in enumerate(result.samples):
    choice: dict[str, Any] = {"index": index}
    if asked.chat:
      choice["message"] = {"role": "assistant", "content": sample.text}
    else:
      choice["text"] = sample.text
    choice["logprobs"] = _log_probs(asked, sample)
    choice["finish_reason"] = sample.finish
    choices.append(choice)
  kind = "chat.completion" if asked.chat else "text_completion"
  return {**_head(asked, kind), "choices": choices, "usage": _usage(result)}


def chunk(asked: ApiRequest, index: int, text: str, finished: Sample | None = None) -> dict:
  """A piece of a stream: more text of one sample.

  Args:
    asked: the request.
    index: of the sample.
    text: what is added to it.
    finished: the whole sample, with its last piece, which carries its finish reason and all of its
      log-probs.
  """
  choice: dict[str, Any] = {"index": index}
  if asked.chat:
    choice["delta"] = {"role": "assistant", "content": text}
  else:
    choice["text"] = text
  choice["logprobs"] = choice["finish_reason"] = None
  if finished:
    choice["logprobs"] = _log_probs(asked, finished)
    choice["finish_reason"] = finished.finish
  return {**_chunk_head(asked), "choices": [choice]}


def usage_chunk(asked: ApiRequest, result: Result) -> dict:
  """The last piece of a stream whose client asked for token counts."""
  return {**_chunk_head(asked), "choices": [], "usage": _usage(result)}


def settled(text: str, stop: Sequence[str]) -> str:
  """The part of an unfinished sample's text that can be sent, since it will not change.

  Left out at its end: half a character, and what may be the beginning of a stop text.
  """
  # A token may end inside a character; the tokenizer shows the bytes so far as U+FFFD.
  text = text.rstrip("\ufffd")
  end = len(text)
  for mark in stop:
    if mark in text:
      end = min(end, text.find(mark))
    for length in range(1, len(mark)):
      if text.endswith(mark[:length]):
        end = min(end, len(text) - length)
  return text[:end]


def _head(asked: ApiRequest, kind: str) -> dict:
  return {"id": asked.request.id, "object": kind, "created": asked.created, "model": asked.model}


def _chunk_head(asked: ApiRequest) -> dict:
  # The protocol has no chunk type for plain completions.
  return _head(asked, "chat.completion.chunk" if asked.chat else "text_completion")


def _usage(result: Result) -> dict:
  sampled = sum(len(sample.ids) for sample in result.samples)
  return {
    "prompt_tokens": result.prompt_tokens,
    "completion_tokens": sampled,
    "total_tokens": result.prompt_tokens + sampled,
  }


def _log_probs(asked: ApiRequest, sample: Sample) -> dict | None:
  if not asked.log_probs:
    return None
  tokens = [f"token_id:{id}" for id in sample.ids]
  # A sample that ended by itself has one log-prob more than ids: that of the token that ended it.
  tokens += ["end"] * (len(sample.log_probs) - len(sample.ids))
  if not asked.chat:
    return {
      "tokens": tokens,
      "token_logprobs": list(sample.log_probs),
      "top_logprobs": None,
      "text_offset": None,
    }
  content = []
  for token, value in zip(tokens, sample.log_probs):
    content.append({"token": token, "logprob": value, "bytes": None, "top_logprobs": []})
  return {"content": content}
