"""A session that samples letters by hash, and a server of it: `python letters.py SETTINGS_JSON SECONDS_A_STEP SLOTS`."""

import hashlib
import json
import sys
import time

from synthjax import files
from synthjax.rollout.requests import RequestError, Result, Sample
from synthjax.serve import server


def sample(prompt, seed, index, sampling):
  """What the session answers: a letter a token, and its log-probs."""
  digest = b"".join(
    hashlib.sha256(f"{prompt} {seed} {index} {block}".encode()).digest()
    for block in range(1 + sampling.max_tokens // 32)
  )
  ids = tuple(byte % 8 for byte in digest[: sampling.max_tokens])
  whole = "".join("abcdefg#"[id] for id in ids)
  ends = [whole.find(mark) for mark in sampling.stop if mark in whole]
  text = whole[: min(ends, default=len(whole))]
  ids = ids[: len(text)]
  return Sample(
    text,
    ids,
    tuple(-id / 8 for id in ids) + ((-1.0,) if ends else ()),
    "stop" if ends else "length",
  ), whole


class Letters:
  """One letter a step for each request that has a slot. Partial texts run past stop texts, as those of real engines may."""

  def __init__(self, seconds=0.0, slots=64):
    self.seconds, self.slots, self.requests, self.steps, self.most = seconds, slots, {}, {}, 0

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
        samples = tuple(
          sample(request.prompt, request.seed, j, request.sampling)[0] for j in range(request.n)
        )
        done.append(Result(id, samples, prompt_tokens=len(request.prompt)))
        self.cancel(id)
    self.most = max(self.most, len(self.requests))
    return done

  def partial(self, id):
    request = self.requests[id]
    return [
      Sample(sample(request.prompt, request.seed, j, request.sampling)[1][: self.steps.get(id, 0)])
      for j in range(request.n)
    ]


def main():
  settings, seconds, slots = json.loads(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
  session = Letters(seconds, slots)
  try:
    server.serve(session, server.Settings(**settings), "letters")
  except (files.DataError, RuntimeError) as e:
    print(type(e).__name__, e, flush=True)
    sys.exit(1)
  finally:
    print(
      json.dumps(
        {"requests": len(session.requests), "steps": len(session.steps), "most": session.most}
      ),
      flush=True,
    )


if __name__ == "__main__":
  main()
