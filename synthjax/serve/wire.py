"""Bodies of the OpenAI protocol: what is asked becomes a `Request`, samples become answers, whole or in chunks.

Beyond the protocol, as in vLLM: `top_k`, `min_p`, `stop_token_ids`. A request without a seed gets a random one. Tokens of log-probs are
named `token_id:17`, and `end` for the end-of-text or stop token, which is no part of the text. The tokenizers here know no chat template:
the contents of chat messages are joined by blank lines, whatever their roles.
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

_MOST_SAMPLES = 1024  # a request
_NUMBER = (int, float)
_FIELDS: dict[
  str, type | tuple[type, ...]
] = {  # of both endpoints, with their types; null counts as absent
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
_COMPLETION_FIELDS = {**_FIELDS, "prompt": (str, list), "logprobs": int}
_CHAT_FIELDS = {**_FIELDS, "messages": list, "max_completion_tokens": int, "logprobs": bool}
_OFF: dict[str, tuple] = {  # options that are not supported, and the values that ask for nothing
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
    kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
    return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class Asked:
  """A request and how its answer should look."""

  request: Request
  model: str
  chat: bool
  stream: bool
  log_probs: bool
  usage: bool  # a last chunk of a stream tells the tokens
  created: int  # seconds since 1970


def parse(text: bytes, model: str, chat: bool) -> Asked:
  """Raises Refusal: malformed, another model, a wrong type, an unsupported option."""
  body = _object(text)
  fields = _CHAT_FIELDS if chat else _COMPLETION_FIELDS
  for name, value in body.items():
    _check(name, value, fields)
  for name in ("model", "messages" if chat else "prompt"):
    if name not in body:
      raise Refusal(400, f"{name} is missing", name)
  if body["model"] != model:
    raise Refusal(
      404,
      f"there is no model {body['model']!r}; this server has {model!r}",
      "model",
      "model_not_found",
    )
  if not 0 <= body.get("logprobs", 0) <= 1:
    raise Refusal(
      400,
      f"logprobs is {body['logprobs']}; expected 0 or 1: those of the sampled tokens alone are known",
      "logprobs",
    )
  if not 1 <= body.get("n", 1) <= _MOST_SAMPLES:
    raise Refusal(400, f"n is {body['n']}; expected 1 to {_MOST_SAMPLES}", "n")
  if not 0 <= body.get("seed", 0) < 1 << 31:
    raise Refusal(400, f"seed is {body['seed']}; expected 0 to {(1 << 31) - 1}", "seed")
  prompt, prompt_ids = (_join(body["messages"]), ()) if chat else _prompt(body["prompt"])
  request = Request(
    ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(16),
    prompt,
    prompt_ids,
    _sampling(body),
    body.get("n", 1),
    body.get("seed", secrets.randbits(31)),
  )
  return Asked(
    request,
    model,
    chat,
    body.get("stream", False),
    body.get("logprobs", False) is not False,
    bool(body.get("stream_options", {}).get("include_usage")),
    int(time.time()),
  )


def _object(text: bytes) -> dict:
  try:
    body = json.loads(text)
    json.dumps(
      body, ensure_ascii=False
    ).encode()  # half a surrogate pair is valid JSON, but no text that a tokenizer could read
  except (ValueError, RecursionError) as e:
    raise Refusal(400, f"the body is not valid JSON: {e}") from e
  if not isinstance(body, dict):
    raise Refusal(400, f"the body is a JSON {type(body).__name__}; expected an object")
  return {name: value for name, value in body.items() if value is not None}


def _check(name: str, value: Any, fields: Mapping[str, type | tuple[type, ...]]) -> None:
  if name in fields:
    expected = fields[name]
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
      names = " or ".join(
        t.__name__ for t in (expected if isinstance(expected, tuple) else (expected,))
      )
      raise Refusal(
        400,
        f"{name} is {str(value)[:60]!r}, of type {type(value).__name__}; expected {names}",
        name,
      )
  elif name not in _OFF:
    raise Refusal(
      400, f"{name} is not an option of this endpoint; it knows {', '.join(sorted(fields))}", name
    )
  elif value not in _OFF[name]:
    raise Refusal(400, f"{name} is not supported; leave it out", name)


def _prompt(prompt) -> tuple[str, tuple[int, ...]]:
  """(text, ids): one of them is there."""
  if isinstance(prompt, str):
    return prompt, ()
  if len(prompt) == 1 and isinstance(prompt[0], str | list):
    return _prompt(prompt[0])
  if not prompt or not all(type(token) is int for token in prompt):
    raise Refusal(
      400,
      f"prompt is a list of {len(prompt)}; expected one text, or one list of token ids: one prompt a request",
      "prompt",
    )
  return "", tuple(prompt)


def _join(messages: list) -> str:
  texts = []
  for number, message in enumerate(messages):
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    for part in parts:
      if (
        not isinstance(part, dict)
        or part.get("type") != "text"
        or not isinstance(part.get("text"), str)
      ):
        raise Refusal(400, f"messages[{number}] has no content that is text", "messages")
      texts.append(part["text"])
  return "\n\n".join(texts)


def _sampling(body: dict) -> Sampling:
  values = {
    name: body[name]
    for name in ("max_tokens", "temperature", "top_k", "top_p", "min_p")
    if name in body
  }
  if "max_completion_tokens" in body:
    values["max_tokens"] = body["max_completion_tokens"]
  stop = body.get("stop", ())
  stop_ids = body.get("stop_token_ids", ())
  if not all(type(token) is int for token in stop_ids):
    raise Refusal(
      400, f"stop_token_ids is {str(stop_ids)[:60]}; expected a list of int", "stop_token_ids"
    )
  sampling = Sampling(
    **values, stop=(stop,) if isinstance(stop, str) else tuple(stop), stop_ids=tuple(stop_ids)
  )
  try:
    requests.check(sampling)
  except RequestError as e:
    raise Refusal(400, str(e), str(e).partition(" ")[0].partition("[")[0]) from e
  return dataclasses.replace(
    sampling,
    temperature=float(sampling.temperature),
    top_p=float(sampling.top_p),
    min_p=float(sampling.min_p),
  )


def answer(asked: Asked, result: Result) -> dict:
  """The whole answer to a request."""
  choices = []
  for index, sample in enumerate(result.samples):
    content = (
      {"message": {"role": "assistant", "content": sample.text}}
      if asked.chat
      else {"text": sample.text}
    )
    choices.append(
      {
        "index": index,
        **content,
        "logprobs": _log_probs(asked, sample),
        "finish_reason": sample.finish,
      }
    )
  return {
    **_head(asked, "chat.completion" if asked.chat else "text_completion"),
    "choices": choices,
    "usage": _usage(result),
  }


def chunk(asked: Asked, index: int, text: str, finished: Sample | None = None) -> dict:
  """A piece of a stream: more text of a sample. The last one of a sample holds its finish reason and all its log-probs."""
  choice = {
    "index": index,
    **({"delta": {"role": "assistant", "content": text}} if asked.chat else {"text": text}),
    "logprobs": _log_probs(asked, finished) if finished else None,
    "finish_reason": finished.finish if finished else None,
  }
  return {
    **_head(asked, "chat.completion.chunk" if asked.chat else "text_completion"),
    "choices": [choice],
  }


def usage_chunk(asked: Asked, result: Result) -> dict:
  """The last piece of a stream that was asked to tell the tokens."""
  return {
    **_head(asked, "chat.completion.chunk" if asked.chat else "text_completion"),
    "choices": [],
    "usage": _usage(result),
  }


def settled(text: str, stop: Sequence[str]) -> str:
  """What of an unfinished sample's text will not change: neither half a character nor what may become a stop text."""
  text = text.rstrip("\ufffd")
  ends = [text.find(mark) for mark in stop if mark in text]
  ends += [len(text) - k for mark in stop for k in range(1, len(mark)) if text.endswith(mark[:k])]
  return text[: min(ends, default=len(text))]


def _head(asked, kind):
  return {"id": asked.request.id, "object": kind, "created": asked.created, "model": asked.model}


def _usage(result):
  sampled = sum(len(sample.ids) for sample in result.samples)
  return {
    "prompt_tokens": result.prompt_tokens,
    "completion_tokens": sampled,
    "total_tokens": result.prompt_tokens + sampled,
  }


def _log_probs(asked, sample):
  if not asked.log_probs:
    return None
  tokens = [f"token_id:{id}" for id in sample.ids] + ["end"] * (
    len(sample.log_probs) - len(sample.ids)
  )
  if asked.chat:
    pairs = zip(tokens, sample.log_probs)
    return {
      "content": [
        {"token": token, "logprob": value, "bytes": None, "top_logprobs": []}
        for token, value in pairs
      ]
    }
  return {
    "tokens": tokens,
    "token_logprobs": list(sample.log_probs),
    "top_logprobs": None,
    "text_offset": None,
  }
