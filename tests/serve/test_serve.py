"""Real processes, real HTTP on loopback, the real `openai` client."""

import asyncio
import contextlib
import importlib.util
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import openai
import psutil
import pytest

from synthjax.config.credit import Sampling
from synthjax.rollout.remote import Remote, Server
from synthjax.rollout.requests import Request
from synthjax.serve import wire

ROOT = pathlib.Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location(
  "letters", pathlib.Path(__file__).with_name("letters.py")
)
letters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(letters)


class Running:
  """A server process."""

  def __init__(self, seconds=0.0, slots=64, variables=None, **settings):
    command = [
      sys.executable,
      str(ROOT / "tests/serve/letters.py"),
      json.dumps({"port": 0, **settings}),
      str(seconds),
      str(slots),
    ]
    self.process = subprocess.Popen(
      command,
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
    )
    self.said = []
    while not (self.said and self.said[-1].startswith("serving")):
      self.said.append(self.process.stdout.readline())
      if not self.said[-1]:
        raise ChildProcessError("".join(self.said) + self.process.communicate()[1])
    self.url = self.said[-1].split()[-1]

  def client(self, key="none", **more):
    return openai.OpenAI(api_key=key, base_url=self.url, max_retries=0, **more)

  def health(self):
    import urllib.request

    with urllib.request.urlopen(self.url.replace("/v1", "/health")) as response:
      return json.load(response)

  def end(self, number=signal.SIGTERM):
    """(exit code, what the session still knew, everything said)."""
    self.process.send_signal(number)
    out, err = self.process.communicate(timeout=30)
    return self.process.returncode, json.loads(out.splitlines()[-1]), out + err


@contextlib.contextmanager
def running(*args, **settings):
  server = Running(*args, **settings)
  try:
    yield server
  finally:
    server.process.kill()
    server.process.communicate()


@pytest.fixture(scope="module")
def server():
  with running(seconds=0.001) as found:
    yield found


def _text(prompt, seed, index=0, **sampling):
  return letters.sample(prompt, seed, index, Sampling(**sampling))[0].text


def _raw(server, path, body, method="POST", headers=None):
  """(status, JSON) of a body that the client would never send."""
  import http.client
  import urllib.parse

  connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=20)
  data = body if isinstance(body, bytes) else json.dumps(body).encode()
  connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
  response = connection.getresponse()
  return response.status, json.loads(response.read()), response.headers


def test_500_concurrent_requests_of_which_some_are_bad_or_given_up_are_answered_rightly_and_no_slot_leaks():
  with running(seconds=0.002, slots=40) as server:
    rounds, chance = [], random.Random(0)
    for _ in range(3):
      rounds.append(asyncio.run(_storm(server, chance)))
      _wait(lambda: server.health()["requests"] == 0)
    code, left, said = server.end()
  assert code == 0 and "Traceback" not in said
  assert left["requests"] == left["steps"] == 0 and left["most"] > 100
  assert rounds[-1] - rounds[1] < 4 << 20, f"memory after each round: {rounds}; the first warms up"


async def _storm(server, chance):
  async with openai.AsyncOpenAI(api_key="none", base_url=server.url, max_retries=0) as client:

    async def good(number):
      n, stop = chance.randint(1, 4), chance.choice([(), ("#a",)])
      answer = await client.completions.create(
        model="letters",
        prompt=f"p{number}",
        n=n,
        seed=number,
        max_tokens=40,
        stop=list(stop) or None,
      )
      assert [c.text for c in answer.choices] == [
        _text(f"p{number}", number, j, max_tokens=40, stop=stop) for j in range(n)
      ]

    async def malformed(number):
      with pytest.raises(openai.BadRequestError):
        await client.completions.create(
          model="letters", prompt=f"p{number}", max_tokens=chance.choice([-1, "many", 1.5])
        )

    async def given_up(number):
      asked = {"model": "letters", "prompt": f"p{number}", "max_tokens": 4000}
      if number % 40 == 10:
        pieces = await client.completions.create(stream=True, **asked)
        for _ in range(chance.randint(0, 9)):
          await anext(pieces)
        await pieces.close()
      else:
        with pytest.raises(TimeoutError):
          await asyncio.wait_for(client.completions.create(**asked), chance.uniform(0, 3))

    work = [
      malformed if number % 20 == 0 else given_up if number % 20 == 10 else good
      for number in range(500)
    ]
    await asyncio.gather(*(task(number) for number, task in enumerate(work)))
  return psutil.Process(server.process.pid).memory_info().rss


def _wait(condition):
  deadline = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < deadline, "waited for 10 s"
    time.sleep(0.02)


@pytest.mark.parametrize("stop", [(), ("#",), ("bd", "##a", "e#"), ("aaaaaaaa",)])
def test_a_stream_is_the_whole_answer_in_pieces(server, stop):
  client = server.client()
  for seed in range(4):
    asked = {
      "model": "letters",
      "n": 3,
      "seed": seed,
      "max_tokens": 40,
      "stop": list(stop) or None,
      "temperature": 0.5,
    }
    whole = client.completions.create(prompt="p", logprobs=1, **asked)
    texts, log_probs, reasons, chunks = [""] * 3, [[] for _ in range(3)], [None] * 3, 0
    for piece in client.completions.create(
      prompt="p", logprobs=1, stream=True, stream_options={"include_usage": True}, **asked
    ):
      chunks += 1
      for choice in piece.choices:
        texts[choice.index] += choice.text
        log_probs[choice.index] += choice.logprobs.token_logprobs if choice.logprobs else []
        reasons[choice.index] = choice.finish_reason
    assert (
      texts
      == [c.text for c in whole.choices]
      == [_text("p", seed, j, max_tokens=40, stop=stop) for j in range(3)]
    )
    assert (
      log_probs == [c.logprobs.token_logprobs for c in whole.choices]
      and len(log_probs[0]) > len(texts[0]) - 1
    )
    assert reasons == [c.finish_reason for c in whole.choices]
    assert (
      piece.usage == whole.usage
      and whole.usage.completion_tokens == sum(map(len, texts))
      and chunks > 6
    )


def test_chat_messages_are_joined_by_blank_lines_and_streamed_too(server):
  client, asked = (
    server.client(),
    {"model": "letters", "seed": 3, "max_completion_tokens": 20, "logprobs": True},
  )
  messages = [
    {"role": "system", "content": "a"},
    {"role": "user", "content": [{"type": "text", "text": "b"}]},
  ]
  whole = client.chat.completions.create(messages=messages, **asked)
  assert whole.choices[0].message.content == _text("a\n\nb", 3, max_tokens=20)
  assert len(whole.choices[0].logprobs.content) == 20
  pieces = list(client.chat.completions.create(messages=messages, stream=True, **asked))
  assert "".join(p.choices[0].delta.content for p in pieces) == whole.choices[0].message.content
  assert pieces[-1].choices[0].finish_reason == "length"
  assert [m.id for m in client.models.list()] == ["letters"]


def test_without_a_seed_two_calls_differ(server):
  one, other = (
    server.client().completions.create(model="letters", prompt="p", max_tokens=20).choices[0].text
    for _ in range(2)
  )
  assert one != other


_GOOD = {"model": "letters", "prompt": "p"}


@pytest.mark.parametrize(
  ("body", "status", "named"),
  [
    (b"{", 400, "not valid JSON"),
    (b"\xff", 400, "not valid JSON"),
    (b"[" * 100_000, 400, "not valid JSON"),
    (b"[]", 400, "expected an object"),
    (b'{"model": "letters", "prompt": "\\ud800"}', 400, "not valid JSON"),
    (b'{"model": "letters", "prompt": "p", "temperature": NaN}', 400, "temperature"),
    (b'{"model": "letters", "prompt": "p", "top_p": 1' + b"0" * 400 + b"}", 400, "top_p"),
    ({"prompt": "p"}, 400, "model is missing"),
    ({"model": "letters"}, 400, "prompt is missing"),
    ({**_GOOD, "model": "gpt"}, 404, "'gpt'"),
    ({**_GOOD, "prompt": ""}, 400, "prompt is empty"),
    ({**_GOOD, "prompt": ["a", "b"]}, 400, "one prompt"),
    ({**_GOOD, "prompt": [1, "b"]}, 400, "one prompt"),
    ({**_GOOD, "prompt": [True]}, 400, "one prompt"),
    ({**_GOOD, "prompt": []}, 400, "one prompt"),
    ({**_GOOD, "prompt": {}}, 400, "str or list"),
    ({**_GOOD, "n": 0}, 400, "n is 0"),
    ({**_GOOD, "n": 10**6}, 400, "n is 1000000"),
    ({**_GOOD, "n": True}, 400, "of type bool"),
    ({**_GOOD, "seed": -1}, 400, "seed is -1"),
    ({**_GOOD, "max_tokens": "7"}, 400, "of type str"),
    ({**_GOOD, "max_tokens": 0}, 400, "max_tokens is 0"),
    ({**_GOOD, "top_p": 2}, 400, "top_p is 2"),
    ({**_GOOD, "stop": [""]}, 400, "stop[0] is"),
    ({**_GOOD, "stop": [1]}, 400, "stop[0] is"),
    ({**_GOOD, "stop_token_ids": ["a"]}, 400, "stop_token_ids"),
    ({**_GOOD, "logprobs": 5}, 400, "logprobs is 5"),
    ({**_GOOD, "echo": True}, 400, "echo is not supported"),
    ({**_GOOD, "best_of": 4}, 400, "best_of is not supported"),
    ({**_GOOD, "frequency_penalty": 0.5}, 400, "frequency_penalty is not supported"),
    ({**_GOOD, "temprature": 1}, 400, "temprature is not an option"),
    ({**_GOOD, "stream": "yes"}, 400, "of type str"),
    ({**_GOOD, "prompt": "p" * (5 << 20)}, 413, "4194304"),
  ],
)
def test_a_bad_request_is_told_what_is_wrong_in_the_protocols_shape(server, body, status, named):
  found, answer, _ = _raw(server, "/v1/completions", body)
  assert found == status and named in answer["error"]["message"], answer
  assert (
    set(answer["error"]) == {"message", "type", "param", "code"}
    and answer["error"]["type"] == "invalid_request_error"
  )


@pytest.mark.parametrize(
  "messages",
  [
    [{}],
    ["a"],
    [{"role": "user", "content": 3}],
    [{"role": "user", "content": [{"type": "image_url"}]}],
  ],
)
def test_messages_without_text_are_refused(server, messages):
  status, answer, _ = _raw(
    server, "/v1/chat/completions", {"model": "letters", "messages": messages}
  )
  assert (
    status == 400
    and answer["error"]["param"] == "messages"
    and "messages[0]" in answer["error"]["message"]
  )


def test_neutral_values_of_unsupported_options_are_taken_and_unknown_paths_are_not(server):
  asked = {
    **_GOOD,
    "echo": False,
    "best_of": 1,
    "logit_bias": {},
    "frequency_penalty": 0.0,
    "suffix": None,
    "user": "me",
    "stream": None,
    "max_tokens": 2,
  }
  assert _raw(server, "/v1/completions", asked)[0] == 200
  assert _raw(server, "/v1/embeddings", {})[0] == 404
  status, answer, _ = _raw(server, "/v1/completions", b"", method="GET")
  assert status == 405 and "GET /v1/completions" in answer["error"]["message"]


def test_one_request_more_than_the_queue_holds_is_answered_429_and_its_client_comes_back():
  with running(seconds=0.01, queue=2) as server:
    streams = [
      server.client().completions.create(**_GOOD, max_tokens=60, stream=True) for _ in range(2)
    ]
    with pytest.raises(
      openai.RateLimitError, match="2 samples are waiting or in flight, of 2"
    ) as refused:
      server.client().completions.create(**_GOOD)
    assert (
      refused.value.response.headers["Retry-After"] == "1" and refused.value.code == "queue_full"
    )
    assert server.client().with_options(max_retries=3).completions.create(
      **_GOOD, seed=1, max_tokens=3
    ).choices[0].text == _text("p", 1, max_tokens=3)
    for stream in streams:
      stream.close()
    assert server.end()[1]["requests"] == 0


def test_samples_are_counted_and_large_requests_leave_room_for_small_ones():
  with running(seconds=0.01, queue=16) as server:
    status, answer, _ = _raw(server, "/v1/completions", {**_GOOD, "n": 9})
    assert status == 400 and "at most 8 samples a request" in answer["error"]["message"]
    large = server.client().completions.create(**_GOOD, n=8, max_tokens=500, stream=True)
    with pytest.raises(openai.RateLimitError, match="8 samples are waiting or in flight, of 16"):
      server.client().completions.create(**_GOOD, n=5)
    assert len(server.client().completions.create(**_GOOD, n=4, max_tokens=2).choices) == 4
    assert server.health()["samples"] == 8
    large.close()


def test_the_token_is_asked_for_and_never_said(tmp_path):
  (tmp_path / "token").write_text("sésame\n")
  for settings in (
    {"token": f"file:{tmp_path}/token"},
    {"token": "env:TOKEN", "variables": {"TOKEN": "sésame"}},
  ):
    with running(**settings) as server:
      for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "sésame".encode()},
        {"Authorization": "Bearer sésameé".encode()},
      ):
        status, answer, found = _raw(server, "/v1/completions", _GOOD, headers=headers)
        assert (
          status == 401 and found["WWW-Authenticate"] == "Bearer" and "sésame" not in str(answer)
        )
      assert (
        _raw(
          server,
          "/v1/completions",
          {**_GOOD, "max_tokens": 1},
          headers={"Authorization": "Bearer sésame".encode()},
        )[0]
        == 200
      )
      assert server.health()["status"] == "ok"
      assert "sésame" not in server.end()[2]


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"token": "env:NO_SUCH"}, "where there is none"),
    ({"token": "sesame"}, "never the token itself"),
  ],
)
def test_a_token_that_is_not_there_or_stands_in_the_settings_keeps_the_server_from_starting(
  settings, said
):
  with pytest.raises(ChildProcessError, match=said) as failure:
    Running(**settings)
  assert "sesame" not in str(failure.value)


def test_a_port_that_is_taken_is_named(server):
  port = int(server.url.split(":")[2].split("/")[0])
  with pytest.raises(
    ChildProcessError, match=f"DataError cannot listen on 127.0.0.1:{port}: .*choose another port"
  ):
    Running(port=port)


def test_a_server_that_is_open_to_the_network_without_a_token_warns():
  with running(host="0.0.0.0") as server:
    assert "asks for no token" in server.said[0]


def test_sigterm_finishes_what_is_in_flight_and_refuses_what_is_new():
  with running(seconds=0.01) as server:
    stream = iter(server.client().completions.create(**_GOOD, seed=1, max_tokens=100, stream=True))
    text = next(stream).choices[0].text
    server.process.send_signal(signal.SIGTERM)
    _wait(lambda: _raw(server, "/v1/completions", _GOOD)[0] == 503)
    text += "".join(piece.choices[0].text for piece in stream)
    assert text == _text("p", 1, max_tokens=100)
    out, _ = server.process.communicate(timeout=10)
  assert (
    server.process.returncode == 0
    and "1 requests in flight have 30 s" in out
    and "server stopped" in out
    and json.loads(out.splitlines()[-1])["requests"] == 0
  )


async def _failures(server, ending, match):
  """How three requests end, and a stream, when `ending` (client -> a further request, or none) strikes while they are in flight."""
  async with openai.AsyncOpenAI(api_key="none", base_url=server.url, max_retries=0) as client:
    tasks = [
      asyncio.ensure_future(client.completions.create(**_GOOD, max_tokens=100_000))
      for _ in range(3)
    ]
    stream = await client.completions.create(**_GOOD, max_tokens=100_000, stream=True)
    tasks += [asyncio.ensure_future(more) for more in ending(client)]
    with pytest.raises(openai.APIError, match=match):
      async for _ in stream:
        pass
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_the_clients_that_the_page_on_your_data_shows_get_answers(server, capsys):
  page = (ROOT / "docs/your_data.md").read_text()
  (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
  (curl,) = re.findall(r"^    (curl .*)$", page, re.M)

  def here(text):  # the session of these tests draws by seeds whatever the temperature
    text = text.replace("http://127.0.0.1:8000/v1", server.url).replace("my_study", "letters")
    return text.replace("temperature=0", "seed=1").replace('"temperature": 0', '"seed": 1')

  exec(compile(here(code), "docs/your_data.md", "exec"), {})  # noqa: S102 - our own page
  told = capsys.readouterr().out.strip()
  assert told
  if shutil.which("curl"):
    answered = subprocess.run(
      shlex.split(here(curl)), capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(answered)["choices"][0]["text"].strip() == told


def test_what_is_not_finished_in_time_after_sigterm_is_told_so():
  with running(seconds=0.01, drain_seconds=0.3) as server:

    def stopped(_):
      server.process.send_signal(signal.SIGTERM)
      return []

    failures = asyncio.run(_failures(server, stopped, "stopped before the request was finished"))
    out, _ = server.process.communicate(timeout=10)
  assert [f.status_code for f in failures] == [
    503
  ] * 3 and "stopped before the request was finished" in str(failures[0])
  assert server.process.returncode == 0 and json.loads(out.splitlines()[-1])["requests"] == 0


def test_a_crash_of_the_session_answers_500_to_everyone_in_flight_and_ends_the_server():
  with running(seconds=0.01) as server:
    crash = lambda client: [client.completions.create(model="letters", prompt="crash")]
    failures = asyncio.run(_failures(server, crash, "ZeroDivisionError"))
    out, err = server.process.communicate(timeout=10)
  assert [f.status_code for f in failures] == [500] * 4 and all(
    "the session crashed: ZeroDivisionError" in str(f) for f in failures
  )
  assert (
    server.process.returncode == 1
    and "SessionError the session crashed" in out
    and "Traceback" in err
  )


def test_our_client_engine_gets_from_our_server_what_the_session_gives(server):
  requests = [
    Request(
      str(i),
      f"p{i}",
      n=1 + i % 3,
      seed=i,
      sampling=Sampling(max_tokens=30, stop=("#",) if i % 2 else ()),
    )
    for i in range(40)
  ]
  requests.append(Request("bad", ""))
  for chat in (False, True):
    results = {
      r.id: r
      for r in Remote(Server(server.url, "letters", chat=chat, concurrency=8)).generate(requests)
    }
    assert "prompt is empty" in results.pop("bad").error and len(results) == 40
    for request in requests[:-1]:
      expected = [
        letters.sample(request.prompt, request.seed, j, request.sampling)[0]
        for j in range(request.n)
      ]
      found = results[request.id]
      assert [(s.text, s.log_probs, s.finish) for s in found.samples] == [
        (s.text, s.log_probs, s.finish) for s in expected
      ]
      assert found.prompt_tokens == len(request.prompt)


def test_what_is_sent_of_an_unfinished_text_never_has_to_be_taken_back():
  chance = random.Random(1)
  for _ in range(2000):
    whole = "".join(chance.choice("ab") for _ in range(12))
    stop = [
      "".join(chance.choice("ab") for _ in range(chance.randint(1, 4)))
      for _ in range(chance.randint(0, 3))
    ]
    final = whole[: min((whole.find(mark) for mark in stop if mark in whole), default=len(whole))]
    sent = ""
    for length in range(13):
      text = wire.settled(whole[:length], stop)
      assert text.startswith(sent) and final.startswith(text)
      sent = text
  assert wire.settled("a\ufffd\ufffd", ()) == "a"
