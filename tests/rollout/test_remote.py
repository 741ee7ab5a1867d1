"""The client engine against a server that fails in every way there is."""

import collections
import dataclasses
import http.server
import json
import threading
import time

import pytest

from synthjax import files
from synthjax.config.credit import Sampling
from synthjax.rollout.remote import Remote, Server, ServerError
from synthjax.rollout.requests import Request


class _Flaky(http.server.BaseHTTPRequestHandler):
  """Does what the prompt says: `fail STATUS TIMES`, `hang TIMES`, `cut TIMES`, `body JSON`.

  Another prompt is answered.
  """

  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
    log = self.server
    with log.lock:
      log.asked.append((time.monotonic(), prompt, body, self.headers))
      log.count[str(prompt)] += 1
      log.now += 1
      log.most = max(log.most, log.now)
    try:
      self._act(prompt, body, log.count[str(prompt)])
    finally:
      with log.lock:
        log.now -= 1

  def _act(self, prompt, body, count):
    verb, *rest = prompt.split(" ", 1) if isinstance(prompt, str) and prompt else ("",)
    times = int(rest[0].split()[-1]) if verb in ("fail", "hang", "cut") else 0
    if verb == "fail" and count <= times:
      return self._send(
        {"error": {"message": "told to"}},
        int(rest[0].split()[0]),
        {"Retry-After": "1"} if "429" in prompt else {},
      )
    if verb == "hang" and count <= times:
      return time.sleep(1.5)
    if verb == "cut" and count <= times:
      self.wfile.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
        b'{"choices"'
      )
      self.close_connection = True
      return None
    if verb == "body":
      return self._send(rest[0].encode(), 200, {})
    time.sleep(0.02)
    log_probs = {"tokens": ["a", "b"], "token_logprobs": [-0.5, -0.25]}
    content = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]}
    choices = [
      {"index": j, "text": f"{prompt}/{j}", "finish_reason": "stop", "logprobs": log_probs}
      if "prompt" in body
      else {
        "index": j,
        "message": {"role": "assistant", "content": f"{prompt}/{j}"},
        "finish_reason": "length",
        "logprobs": content,
      }
      for j in reversed(range(body["n"]))
    ]  # in any order
    return self._send(
      {
        "id": "1",
        "object": "x",
        "created": 0,
        "model": "m",
        "choices": choices,
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
      },
      200,
      {},
    )

  def _send(self, body, status, headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.send_response(status)
    for name, value in {
      "Content-Type": "application/json",
      "Content-Length": str(len(data)),
      **headers,
    }.items():
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(data)


class _HTTPServer(http.server.ThreadingHTTPServer):
  request_queue_size = 200

  def handle_error(self, *_):
    """A client that does not wait is no fault."""


@pytest.fixture
def flaky():
  server = _HTTPServer(("127.0.0.1", 0), _Flaky)
  server.lock, server.asked, server.count, server.now, server.most = (
    threading.Lock(),
    [],
    collections.Counter(),
    0,
    0,
  )
  threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
  server.about = Server(
    f"http://127.0.0.1:{server.server_port}/v1", "m", concurrency=8, seconds=0.7, retries=3
  )
  yield server
  server.shutdown()
  server.server_close()


def _results(server, prompts, **more):
  requests = [Request(str(i), prompt) for i, prompt in enumerate(prompts)]
  return [
    r
    for _, r in sorted(
      (int(r.id), r) for r in Remote(dataclasses.replace(server.about, **more)).generate(requests)
    )
  ]


def test_what_passes_is_asked_again_and_the_wait_is_as_long_as_the_server_says(flaky):
  prompts = ["fail 500 2", "fail 503 1", "fail 429 1", "hang 1", "cut 2", "good"]
  assert [r.samples[0].text if r.samples else r.error for r in _results(flaky, prompts)] == [
    f"{p}/0" for p in prompts
  ]
  times = collections.defaultdict(list)
  for moment, prompt, _, _ in flaky.asked:
    times[prompt].append(moment)
  assert {p: len(t) for p, t in times.items()} == {
    "fail 500 2": 3,
    "fail 503 1": 2,
    "fail 429 1": 2,
    "hang 1": 2,
    "cut 2": 3,
    "good": 1,
  }
  assert times["fail 429 1"][1] - times["fail 429 1"][0] >= 0.99
  first, second = (b - a for a, b in zip(times["fail 500 2"], times["fail 500 2"][1:]))
  assert first >= 0.37 and second >= 0.74  # 0.5 s and 1 s, less up to a quarter


def test_what_stays_wrong_is_the_error_of_its_request_and_the_others_go_on(flaky):
  prompts = ["fail 400 9", "fail 422 9", "fail 500 9", "hang 9", "cut 9", "good"]
  results = _results(flaky, prompts, retries=1)
  for result, named in zip(
    results,
    [
      "refuses the request: .*400.*told to",
      "refuses .*422",
      "asked up to 2 times: .*500",
      "timed out",
      "Connection error",
    ],
  ):
    assert not result.samples
    with pytest.raises(AssertionError, match=named):
      raise AssertionError(result.error)
  assert results[-1].samples[0].text == "good/0"
  assert (
    flaky.count["fail 400 9"] == flaky.count["fail 422 9"] == 1 and flaky.count["fail 500 9"] == 2
  )


@pytest.mark.parametrize(
  ("body", "named"),
  [
    ("", "malformed"),
    ("<html>busy</html>", "malformed"),
    ("[]", "malformed"),
    ("null", "malformed"),
    ('"text"', "not JSON"),
    ("{}", "answered with 0 samples, expected 1"),
    ('{"choices": []}', "answered with 0 samples"),
    ('{"choices": null}', "answered with 0 samples"),
    ('{"choices": [null]}', "malformed"),
    ('{"choices": {"a": 1}}', "malformed|samples"),
    ('{"choices": [{"index": 0, "text": "a"}]}', "finish reason None"),
    ('{"choices": [{"index": 0, "text": null, "finish_reason": "stop"}]}', "text 'None'"),
    (
      '{"choices": [{"index": 0, "text": "a", "finish_reason": "content_filter"}]}',
      "content_filter",
    ),
    ('{"choices": [{"index": 1, "text": "a", "finish_reason": "stop"}]}', "samples"),
    ('{"choices": [{"text": "a", "finish_reason": "stop"}]}', "samples|malformed"),
    (
      '{"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}, '
      '{"index": 1, "text": "b", "finish_reason": "stop"}]}',
      "2 samples, expected 1",
    ),
    (
      '{"choices": [{"index": 0, "text": "a", "finish_reason": "stop", '
      '"logprobs": {"token_logprobs": ["x"]}}]}',
      "malformed",
    ),
    (
      '{"choices": [{"index": 0, "text": "a", "finish_reason": "stop", "logprobs": 3}]}',
      "malformed",
    ),
    ('{"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}], "usage": 3}', "malformed"),
    (
      '{"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}], '
      '"usage": {"prompt_tokens": "x"}}',
      "malformed",
    ),
  ],
)
def test_an_answer_that_is_not_of_the_protocol_is_the_error_of_its_request(flaky, body, named):
  wrong, good = _results(flaky, [f"body {body}", "good"])
  with pytest.raises(AssertionError, match=named):
    raise AssertionError(wrong.error)
  assert not wrong.samples and good.samples[0].text == "good/0"


def test_every_setting_reaches_the_server_and_what_is_not_of_the_protocol_only_where_it_is_set(
  flaky,
):
  full = Sampling(
    max_tokens=9, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, stop=("x", "y"), stop_ids=(4,)
  )
  (result,) = Remote(flaky.about).generate(
    [Request("a", prompt_ids=(1, 2), sampling=full, n=3, seed=5)]
  )
  assert flaky.asked[0][2] == {
    "model": "m",
    "n": 3,
    "seed": 5,
    "max_tokens": 9,
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": ["x", "y"],
    "prompt": [1, 2],
    "logprobs": 1,
    "top_k": 3,
    "min_p": 0.1,
    "stop_token_ids": [4],
  }
  assert [s.text for s in result.samples] == [f"[1, 2]/{j}" for j in range(3)]
  assert (
    result.samples[0].log_probs == (-0.5, -0.25)
    and result.prompt_tokens == 7
    and result.samples[0].finish == "stop"
  )
  (result,) = Remote(dataclasses.replace(flaky.about, chat=True, log_probs=False)).generate(
    [Request("a", "p")]
  )
  assert flaky.asked[1][2] == {
    "model": "m",
    "n": 1,
    "seed": 0,
    "max_tokens": 64,
    "temperature": 1.0,
    "top_p": 1.0,
    "messages": [{"role": "user", "content": "p"}],
  }
  assert result.samples[0].log_probs == (-0.5, -0.25) and result.samples[0].finish == "length"


def test_requests_that_cannot_be_sent_have_an_error(flaky):
  requests = [
    Request("a", "p", n=0),
    Request("b", "p", sampling=Sampling(top_p=2.0)),
    Request("c", "\ud800"),
    Request("d", "good"),
  ]
  results = {r.id: r for r in Remote(flaky.about).generate(requests)}
  assert (
    "n is 0" in results["a"].error
    and "top_p is 2" in results["b"].error
    and "not valid Unicode" in results["c"].error
  )
  assert results["d"].samples and len(flaky.asked) == 1
  (result,) = Remote(dataclasses.replace(flaky.about, chat=True)).generate(
    [Request("a", prompt_ids=(1,))]
  )
  assert "prompt_ids cannot be sent" in result.error


def test_as_many_requests_are_in_flight_as_allowed_and_no_more_are_read(flaky):
  read = []

  def requests():
    for i in range(60):
      read.append(i)
      yield Request(str(i), f"p{i}")

  results = Remote(flaky.about).generate(requests())
  for done in range(1, 61):
    next(results)
    assert len(read) <= done + 8
  assert flaky.most == 8


def test_a_job_that_is_given_up_leaves_at_once_and_keeps_no_thread(flaky):
  results = Remote(dataclasses.replace(flaky.about, seconds=60.0)).generate(
    [Request(str(i), p) for i, p in enumerate(["good", "hang 9", "hang 8"])]
  )
  began = time.monotonic()
  assert next(results).id == "0"
  results.close()
  assert time.monotonic() - began < 1.2
  assert "remote engine" not in {thread.name for thread in threading.enumerate()}


def test_a_server_that_refuses_everything_or_is_gone_ends_the_job(flaky):
  with pytest.raises(ServerError, match="refuses the key, the path or model 'm'"):
    _results(flaky, ["good", "fail 401 99"])
  with pytest.raises(ServerError, match="refuses the key, the path or model 'm'"):
    _results(flaky, ["good", "fail 404 99"])
  with pytest.raises(ServerError, match="17 requests on end got no answer; is the server up"):
    _results(flaky, ["p"] * 100, url="http://127.0.0.1:9/v1", retries=0)


def test_the_key_comes_from_the_environment_and_is_nowhere_else(flaky, monkeypatch):
  about = dataclasses.replace(flaky.about, key_variable="MY_KEY")
  monkeypatch.delenv("MY_KEY", raising=False)
  with pytest.raises(files.DataError, match="MY_KEY is not set"):
    Remote(about)
  monkeypatch.setenv("MY_KEY", "sk-1234")
  engine = Remote(about)
  assert list(engine.generate([Request("a", "p")]))[0].samples
  assert flaky.asked[-1][3]["Authorization"] == "Bearer sk-1234"
  assert engine.fingerprint == f"{about.url} m" and "sk-1234" not in str(vars(engine))
  monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
  list(Remote(flaky.about).generate([Request("a", "p")]))
  assert flaky.asked[-1][3]["Authorization"] == "Bearer none"
  for url in ("http://me:sk-1234@host/v1", "http://host/v1?key=sk-1234", "host:8000"):
    with pytest.raises(files.DataError, match="expected http://HOST") as refused:
      Remote(dataclasses.replace(about, url=url))
    assert "sk-1234" not in str(refused.value)
