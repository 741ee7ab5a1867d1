"""A server under load, its token, and how it stops."""

import asyncio
import json
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import time

import openai
import psutil
import pytest

ROOT = pathlib.Path(__file__).parents[2]
GOOD = {"model": "letters", "prompt": "p"}


def wait_until(condition):
  deadline = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < deadline, "waited for 10 s"
    time.sleep(0.02)


def test_500_concurrent_requests_some_bad_some_abandoned_are_answered_correctly_and_leak_nothing(
  serve, expected_text
):
  with serve(seconds=0.002, slots=40) as server:
    storm = Storm(server, expected_text)
    memory = []
    for _ in range(3):
      asyncio.run(storm.send_500())
      wait_until(lambda: server.health()["requests"] == 0)
      memory.append(psutil.Process(server.process.pid).memory_info().rss)
    ended = server.end()
  assert ended.code == 0
  assert "Traceback" not in ended.output
  assert ended.left["requests"] == ended.left["steps"] == 0
  assert ended.left["most"] > 100
  # The first round warms up.
  assert memory[-1] - memory[1] < 4 << 20, memory


class Storm:
  """Many requests at once: of 20, one is malformed and one is abandoned."""

  def __init__(self, server, expected_text):
    self.server, self.expected_text = server, expected_text
    self.chance = random.Random(0)

  async def send_500(self):
    async with self.server.async_client() as client:
      requests = []
      for number in range(500):
        send = self.good
        if number % 20 == 0:
          send = self.malformed
        elif number % 20 == 10:
          send = self.abandoned
        requests.append(send(client, number))
      await asyncio.gather(*requests)

  async def good(self, client, number):
    n, stop = self.chance.randint(1, 4), self.chance.choice([(), ("#a",)])
    answer = await client.completions.create(
      model="letters",
      prompt=f"p{number}",
      n=n,
      seed=number,
      max_tokens=40,
      stop=list(stop) or None,
    )
    for j, choice in enumerate(answer.choices):
      expected = self.expected_text(f"p{number}", number, j, max_tokens=40, stop=stop)
      assert choice.text == expected
    assert len(answer.choices) == n

  async def malformed(self, client, number):
    max_tokens = self.chance.choice([-1, "many", 1.5])
    body = {"model": "letters", "prompt": f"p{number}", "max_tokens": max_tokens}
    with pytest.raises(openai.BadRequestError):
      await client.completions.create(**body)

  async def abandoned(self, client, number):
    body = {"model": "letters", "prompt": f"p{number}", "max_tokens": 4000}
    if number % 40 == 10:
      stream = await client.completions.create(stream=True, **body)
      for _ in range(self.chance.randint(0, 9)):
        await anext(stream)
      await stream.close()
    else:
      with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.completions.create(**body), self.chance.uniform(0, 3))


def test_a_full_queue_answers_429_and_the_client_comes_back(serve, expected_text):
  with serve(seconds=0.01, queue=2) as server:
    create = server.client().completions.create
    streams = [create(**GOOD, max_tokens=60, stream=True) for _ in range(2)]
    full = "2 samples are waiting or in flight, of 2"
    with pytest.raises(openai.RateLimitError, match=full) as refused:
      create(**GOOD)
    assert refused.value.response.headers["Retry-After"] == "1"
    assert refused.value.code == "queue_full"
    patient = server.client().with_options(max_retries=3)
    answer = patient.completions.create(**GOOD, seed=1, max_tokens=3)
    assert answer.choices[0].text == expected_text("p", 1, max_tokens=3)
    for stream in streams:
      stream.close()
    assert server.end().left["requests"] == 0


def test_samples_are_counted_and_large_requests_leave_room_for_small_ones(serve):
  with serve(seconds=0.01, queue=16) as server:
    reply = server.send("/v1/completions", {**GOOD, "n": 9})
    assert reply.status == 400
    assert "at most 8 samples a request" in reply.body["error"]["message"]
    create = server.client().completions.create
    large = create(**GOOD, n=8, max_tokens=500, stream=True)
    with pytest.raises(openai.RateLimitError, match="8 samples are waiting or in flight, of 16"):
      create(**GOOD, n=5)
    assert len(create(**GOOD, n=4, max_tokens=2).choices) == 4
    assert server.health()["samples"] == 8
    large.close()


@pytest.mark.parametrize("source", ["file", "env"])
def test_the_token_is_asked_for_and_never_shown(serve, tmp_path, source):
  (tmp_path / "token").write_text("sésame\n")
  settings = {"token": f"file:{tmp_path}/token"}
  if source == "env":
    settings = {"token": "env:TOKEN", "variables": {"TOKEN": "sésame"}}
  with serve(**settings) as server:
    for headers in (
      {},
      {"Authorization": "Bearer wrong"},
      {"Authorization": "sésame".encode()},
      {"Authorization": "Bearer sésameé".encode()},
    ):
      reply = server.send("/v1/completions", GOOD, headers=headers)
      assert reply.status == 401
      assert reply.headers["WWW-Authenticate"] == "Bearer"
      assert "sésame" not in str(reply.body)
    headers = {"Authorization": "Bearer sésame".encode()}
    reply = server.send("/v1/completions", {**GOOD, "max_tokens": 1}, headers=headers)
    assert reply.status == 200
    assert server.health()["status"] == "ok"
    assert "sésame" not in server.end().output


@pytest.mark.parametrize(
  ("token", "message"),
  [("env:NO_SUCH", "where there is none"), ("sesame", "never the token itself")],
)
def test_a_server_does_not_start_without_its_token_or_with_the_token_in_its_settings(
  serve, token, message
):
  with pytest.raises(ChildProcessError, match=message) as failure, serve(token=token):
    pass
  assert "sesame" not in str(failure.value)


def test_a_port_that_is_taken_is_named(server, serve):
  port = int(server.url.split(":")[2].split("/")[0])
  message = f"DataError cannot listen on 127.0.0.1:{port}: .*choose another port"
  with pytest.raises(ChildProcessError, match=message), serve(port=port):
    pass


def test_a_server_that_is_open_to_the_network_without_a_token_warns(serve):
  with serve(host="0.0.0.0") as server:
    assert "asks for no token" in server.lines[0]


def test_the_clients_in_docs_your_data_get_answers(server, capsys):
  page = (ROOT / "docs/your_data.md").read_text()
  (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
  (curl,) = re.findall(r"^    (curl .*)$", page, re.M)

  def for_this_server(text):
    text = text.replace("http://127.0.0.1:8000/v1", server.url).replace("my_study", "letters")
    # The session of these tests draws by seeds, whatever the temperature.
    return text.replace("temperature=0", "seed=1").replace('"temperature": 0', '"seed": 1')

  exec(compile(for_this_server(code), "docs/your_data.md", "exec"), {})  # noqa: S102 - our own page
  printed = capsys.readouterr().out.strip()
  assert printed
  if shutil.which("curl"):
    command = shlex.split(for_this_server(curl))
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(answer)["choices"][0]["text"].strip() == printed


def test_sigterm_finishes_requests_in_flight_and_refuses_new_ones(serve, expected_text):
  with serve(seconds=0.01) as server:
    create = server.client().completions.create
    stream = iter(create(**GOOD, seed=1, max_tokens=100, stream=True))
    text = next(stream).choices[0].text
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.send("/v1/completions", GOOD).status == 503)
    for chunk in stream:
      text += chunk.choices[0].text
    assert text == expected_text("p", 1, max_tokens=100)
    ended = server.end(None)
  assert ended.code == 0
  assert "1 requests in flight have 30 s" in ended.output
  assert "server stopped" in ended.output
  assert ended.left["requests"] == 0


async def fail_in_flight(server, strike, message):
  """The errors of three requests, and of `strike(client)` where that is one more.

  A stream is in flight too; its error has the message.
  """
  async with server.async_client() as client:
    create = client.completions.create
    requests = []
    for _ in range(3):
      requests.append(asyncio.ensure_future(create(**GOOD, max_tokens=100_000)))
    stream = await create(**GOOD, max_tokens=100_000, stream=True)
    if more := strike(client):
      requests.append(asyncio.ensure_future(more))
    with pytest.raises(openai.APIError, match=message):
      async for _ in stream:
        pass
    return await asyncio.gather(*requests, return_exceptions=True)


def test_requests_that_are_not_finished_in_time_after_sigterm_are_answered_503(serve):
  message = "stopped before the request was finished"
  with serve(seconds=0.01, drain_seconds=0.3) as server:

    def stop(client):
      server.process.send_signal(signal.SIGTERM)

    failures = asyncio.run(fail_in_flight(server, stop, message))
    ended = server.end(None)
  assert [failure.status_code for failure in failures] == [503] * 3
  assert message in str(failures[0])
  assert ended.code == 0
  assert ended.left["requests"] == 0


def test_a_crash_of_the_session_answers_500_to_everyone_in_flight_and_ends_the_server(serve):
  def crash(client):
    return client.completions.create(model="letters", prompt="crash")

  with serve(seconds=0.01) as server:
    failures = asyncio.run(fail_in_flight(server, crash, "ZeroDivisionError"))
    ended = server.end(None)
  assert [failure.status_code for failure in failures] == [500] * 4
  for failure in failures:
    assert "the session crashed: ZeroDivisionError" in str(failure)
  assert ended.code == 1
  assert "SessionError the session crashed" in ended.output
  assert "Traceback" in ended.output
