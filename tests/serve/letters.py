"""A session that samples letters by hash, and a server of it.

Run as `python letters.py SETTINGS_JSON STEP_SECONDS SLOTS`.
"""

import hashlib
import json
import sys
import time
from typing import NamedTuple

from synthjax import files
from synthjax.rollout.requests import RequestError, Result, Sample
from synthjax.serve import server

LETTERS = "abcdefg#"


class Drawn(NamedTuple):
  """What the session answers, and the text that goes on behind its stop text."""

  sample: Sample
  whole_text: str


def draw(prompt, seed, index, sampling):
  """Sample `index` of a request: a letter a token, and made-up log-probs."""
  digest = b""
  for block in range(1 + sampling.max_tokens // 32):
    digest += hashlib.sha256(f"{prompt} {seed} {index} {block}".encode()).digest()
  ids = tuple(byte % 8 for byte in digest[: sampling.max_tokens])
  whole = "".join(LETTERS[id] for id in ids)
  ends = [whole.find(mark) for mark in sampling.stop if mark in whole]
  text = whole[: min(ends, default=len(whole))]
  ids = ids[: len(text)]
  log_probs = tuple(-id / 8 for id in ids)
  if ends:
    return Drawn(Sample(text, ids, (*log_probs, -1.0), "stop"), whole)
  return Drawn(Sample(text, ids, log_probs, "length"), whole)


def draw_all(request):
  """All samples of a request."""
  drawn = []
  for index in range(request.n):
    drawn.append(draw(request.prompt, request.seed, index, request.sampling))
  return drawn


class Letters:
  """One letter a step for each request that has a slot.

  Partial texts run past stop texts, as those of real engines may.
  """

  def __init__(self, seconds=0.0, slots=64):
    self.seconds, self.slots = seconds, slots
    self.requests, self.steps = {}, {}
    self.most = 0

  @property
  def busy(self):
    return bool(self.requests)

  def add(self, request):
    if not request.prompt:
      raise RequestError("prompt is empty; expected at least one token")
    assert request.id not in self.requests
    self.requests[request.id] = request

  def cancel(self, id):
    self.requests.pop(id, None)
    self.steps.pop(id, None)

  def step(self):
    time.sleep(self.seconds)
    done = []
    for id, request in list(self.requests.items())[: self.slots]:
      if request.prompt == "crash":
        raise ZeroDivisionError("by zero")
      self.steps[id] = self.steps.get(id, 0) + 1
      if self.steps[id] == request.sampling.max_tokens:
        samples = tuple(drawn.sample for drawn in draw_all(request))
        done.append(Result(id, samples, prompt_tokens=len(request.prompt)))
        self.cancel(id)
    self.most = max(self.most, len(self.requests))
    return done

  def partial(self, id):
    length = self.steps.get(id, 0)
    return [Sample(drawn.whole_text[:length]) for drawn in draw_all(self.requests[id])]


def main():
  settings, seconds, slots = json.loads(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
  session = Letters(seconds, slots)
  try:
    server.serve(session, server.ServerSettings(**settings), "letters")
  except (files.DataError, RuntimeError) as e:
    print(type(e).__name__, e, flush=True)
    sys.exit(1)
  finally:
    left = {"requests": len(session.requests), "steps": len(session.steps), "most": session.most}
    print(json.dumps(left), flush=True)


if __name__ == "__main__":
  main()
