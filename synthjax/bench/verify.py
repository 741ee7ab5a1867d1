"""`synthjax bench verify`: judging model answers beside math-verify alone, in one process and one run; where the two differ is listed."""

import functools
import itertools
import os
import pathlib
import time
from collections.abc import Callable
from importlib import metadata

from synthjax import files
from synthjax.verify import extract, fast, pool

Pairs = list[tuple[str, str]]


def run(seconds: float) -> None:
  """Prints answers a second of both, the share that the fast path settles, and every difference."""
  folder = pathlib.Path(os.environ.get("SYNTHJAX_DATA") or "../shared/data")
  sets = {"GSM8K": gsm8k_answers(folder), "MATH": math_answers(folder)}
  with pool.Pool(limits=pool.Limits(workers=1)) as judge:
    judge.compare("|2x|", "2|x|")  # the worker is up before the clock starts
    for name, pairs in sets.items():
      _report(name, pairs, judge, seconds / 2)


def gsm8k_answers(folder: pathlib.Path) -> Pairs:
  """(gold, answer) of four models' solutions of the GSM8K test problems; those without an answer are left out."""
  rows = files.read_jsonl(folder / "llm_generated/gsm8k_example_model_solutions.jsonl")
  found = [
    (
      extract.extract(row["ground_truth"], "a_line"),
      extract.extract(row[model]["solution"], "a_line"),
    )
    for row in rows
    for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
  ]
  return [(gold, answer) for gold, answer in found if gold and answer]


def math_answers(folder: pathlib.Path) -> Pairs:
  """(gold, answer) of Qwen2-Math's samples, and MATH's golds each against another way to write it and against its neighbour."""
  rows = files.read_jsonl(folder / "llm_generated/qwen_math_cot_100.jsonl")
  samples = [(row["gt"], extract.extract(text, "boxed")) for row in rows for text in row["code"]]
  golds = [row["answer"] for row in files.read_jsonl(folder / "math/test.jsonl") if row["answer"]]
  rewritten = [
    (gold, f"${gold.replace('frac', 'dfrac').replace('ddfrac', 'dfrac')}$.") for gold in golds[::8]
  ]
  return (
    [(gold, answer) for gold, answer in samples if answer]
    + rewritten
    + list(itertools.pairwise(golds))[::8]
  )


def _report(name: str, pairs: Pairs, judge: pool.Pool, seconds: float) -> None:
  alone = _math_verify()
  ours, theirs, mine, his = 0.0, 0.0, [], []
  # In blocks, one after the other: what else the machine does hits both alike.
  block = max(1, len(pairs) // 20)
  for start in range(0, len(pairs), block):
    part = pairs[start : start + block]
    began = time.monotonic()
    mine += [verdict.value for verdict in judge.compare_many(part)]
    ours += time.monotonic() - began
    began = time.monotonic()
    his += [alone(*pair) for pair in part]
    theirs += time.monotonic() - began
    if ours + theirs > seconds:
      break
  done = len(mine)
  # Only now: asking before would fill the caches that the clock runs against.
  fast_share = sum(fast.compare(*pair) is not None for pair in pairs) / len(pairs)
  print(
    f"{name}: {done:,} pairs; synthjax {done / ours:,.0f} a second, math-verify {metadata.version('math-verify')} alone "
    f"{done / theirs:,.0f} a second: {theirs / ours:.1f}x; the fast path settles {100 * fast_share:.1f} %"
  )
  differ = [
    (pair, a, b) for pair, a, b in zip(pairs, mine, his) if a != "undecided" and (a == "equal") != b
  ]
  for (gold, answer), verdict, equal in dict.fromkeys(differ):
    way = "fast path" if fast.compare(gold, answer) is not None else "guard or mended spelling"
    print(
      f"  {gold!r} and {answer!r}: {verdict} here ({way}), {'equal' if equal else 'not equal'} there"
    )


def _math_verify() -> Callable[[str, str], bool]:
  import logging

  import math_verify

  logging.getLogger("math_verify").setLevel(logging.ERROR)

  @functools.cache
  def config():
    return [math_verify.LatexExtractionConfig(boxed_match_priority=0)]

  def parse(text):
    return math_verify.parse(r"\boxed{" + text + "}", config(), parsing_timeout=None)

  return lambda gold, answer: math_verify.verify(parse(gold), parse(answer), timeout_seconds=None)
