"""What the engine keeps of requests, of their samples and of the pages in a block, on the host."""

import dataclasses
import zlib

import numpy as np

from synthjax.rollout.requests import Request, Result, Sample


class Asked:
  """A request whose samples are being drawn."""

  def __init__(self, request: Request, prompt: tuple[int, ...]):
    self.request = request
    self.prompt = prompt
    self.samples: list[Sample | None] = [None] * request.n
    self.left = request.n  # samples that are not finished

  def result(self) -> Result:
    """The answer, once nothing is left."""
    samples = tuple(sample for sample in self.samples if sample)
    return Result(self.request.id, samples, prompt_tokens=len(self.prompt))


@dataclasses.dataclass(eq=False)
class Room:
  """Room for a page in a block."""

  block: int
  start: int  # its first position
  left: int = 0  # sequences that still need it


@dataclasses.dataclass(eq=False)
class Sequence:
  """One sample of a request, waiting or in a slot."""

  asked: Asked
  number: int
  ahead: bool = False  # goes before the further turns of other requests in its block
  room: Room = None  # type: ignore[assignment]  # once it is admitted
  end: int = 0  # position of the prompt's last token in the block
  row: int = 0  # of the block's results

  def key(self) -> tuple[int, int]:
    """Of the sample's random numbers: from its seed, its prompt and its number alone."""
    seed = self.asked.request.seed
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, *self.asked.prompt]
    return zlib.crc32(np.array(words, np.uint32).tobytes()), self.number


@dataclasses.dataclass
class Counts:
  """What an engine has done."""

  samples: int = 0
  tokens: int = 0  # sampled
  prompt_tokens: int = 0  # of all samples together
  prefilled: int = 0  # of them computed
  used: int = 0  # slots that were decoding, summed over steps
  offered: int = 0  # all slots, summed over steps
  compilations: int = 0
  seconds: float = 0.0

  def line(self) -> str:
    """The counts as a sentence."""
    occupied = 100 * self.used / max(self.offered, 1)
    reused = 100 * (1 - self.prefilled / max(self.prompt_tokens, 1))
    rate = self.tokens / max(self.seconds, 1e-9)
    return (
      f"{self.samples:,} samples, {self.tokens:,} tokens, {rate:,.0f} tokens/s; "
      f"slots {occupied:.1f} % occupied; {reused:.1f} % of the prompts' tokens reused; "
      f"{self.compilations} compilations"
    )
