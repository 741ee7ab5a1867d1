"""Real server processes, real HTTP on loopback, the real `openai` client."""

import contextlib
import http.client
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from typing import NamedTuple

import openai
import pytest

from synthjax.config.credit import Sampling

ROOT = pathlib.Path(__file__).parents[2]
LETTERS = pathlib.Path(__file__).with_name("letters.py")


class Reply(NamedTuple):
  """A reply to a body that the `openai` client would never send."""

  status: int
  body: dict
  headers: http.client.HTTPMessage


class Ended(NamedTuple):
  """A server that has ended: what its session still held as JSON, and all of its output."""

  code: int
  left: dict
  output: str


class Running:
  """A server process."""

  def __init__(self, seconds=0.0, slots=64, variables=None, **settings):
    settings = json.dumps({"port": 0, **settings})
    self.process = subprocess.Popen(
      [sys.executable, str(LETTERS), settings, str(seconds), str(slots)],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
    )
    self.lines = []
    while not (self.lines and self.lines[-1].startswith("serving")):
      self.lines.append(self.process.stdout.readline())
      if not self.lines[-1]:
        raise ChildProcessError("".join(self.lines) + self.process.communicate()[1])
    self.url = self.lines[-1].split()[-1]

  def client(self, key="none", **options):
    return openai.OpenAI(api_key=key, base_url=self.url, max_retries=0, **options)

  def async_client(self):
    return openai.AsyncOpenAI(api_key="none", base_url=self.url, max_retries=0)

  def complete(self, **body):
    """The text of one completion of "p"."""
    body = {"model": "letters", "prompt": "p", **body}
    return self.client().completions.create(**body).choices[0].text

  def health(self):
    with urllib.request.urlopen(self.url.replace("/v1", "/health")) as response:
      return json.load(response)

  def send(self, path, body, method="POST", headers=None):
    """The reply to any body: JSON, or bytes as they are."""
    host = urllib.parse.urlsplit(self.url).netloc
    connection = http.client.HTTPConnection(host, timeout=20)
    if not isinstance(body, bytes):
      body = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return Reply(response.status, json.loads(response.read()), response.headers)

  def end(self, number=signal.SIGTERM):
    """Sends a signal, or none, and waits."""
    if number:
      self.process.send_signal(number)
    out, err = self.process.communicate(timeout=30)
    return Ended(self.process.returncode, json.loads(out.splitlines()[-1]), out + err)


@contextlib.contextmanager
def running(**settings):
  server = Running(**settings)
  try:
    yield server
  finally:
    server.process.kill()
    server.process.communicate()


@pytest.fixture(scope="module")
def server():
  """A server that the tests of a module share."""
  with running(seconds=0.001) as started:
    yield started


@pytest.fixture(scope="session")
def serve():
  """Starts a server of its own for a test, as a context manager."""
  return running


@pytest.fixture(scope="session")
def letters():
  """The module of the session."""
  spec = importlib.util.spec_from_file_location("letters", LETTERS)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="session")
def expected_text(letters):
  """The text of a sample, without a server."""

  def text(prompt, seed, index=0, **sampling):
    return letters.draw(prompt, seed, index, Sampling(**sampling)).sample.text

  return text
