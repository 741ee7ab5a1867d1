"""`synthjax bench verify`: judging model answers beside math-verify alone, in one process and one
run; the pairs on which the two differ are listed.
"""

import functools
import itertools
import os
import pathlib
import time
from collections.abc import Callable
from importlib import metadata

from synthjax import files
from synthjax.verify import extract, fast, pool

# (gold, answer)
Pairs = list[tuple[str, str]]

_GSM8K_MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def run(seconds: float) -> None:
  """Prints answers a second of both, the share that the fast path settles, and all differences."""
  folder = pathlib.Path(os.environ.get("SYNTHJAX_DATA") or "../shared/data")
  sets = {"GSM8K": gsm8k_answers(folder), "MATH": math_answers(folder)}
  with pool.Pool(limits=pool.Limits(workers=1)) as judge:
    # Starts the worker before the clock.
    judge.compare("|2x|", "2|x|")
    for name, pairs in sets.items():
      _report(name, pairs, judge, seconds / 2)


def gsm8k_answers(folder: pathlib.Path) -> Pairs:
  """Four models' solutions of the GSM8K test problems; those without an answer are left out."""
  rows = files.read_jsonl(folder / "llm_generated/gsm8k_example_model_solutions.jsonl")
  pairs = []
  for row in rows:
    for model in _GSM8K_MODELS:
      gold = extract.extract(row["ground_truth"], "a_line")
      answer = extract.extract(row[model]["solution"], "a_line")
      if gold and answer:
        pairs.append((gold, answer))
  return pairs


def math_answers(folder: pathlib.Path) -> Pairs:
  """Qwen2-Math's samples, and every eighth gold answer of MATH.

  A gold answer stands against another way to write it, and against the next one in the file.
  """
  pairs = []
  for row in files.read_jsonl(folder / "llm_generated/qwen_math_cot_100.jsonl"):
    for text in row["code"]:
      answer = extract.extract(text, "boxed")
      if answer:
        pairs.append((row["gt"], answer))
  golds = [row["answer"] for row in files.read_jsonl(folder / "math/test.jsonl") if row["answer"]]
  for gold in golds[::8]:
    rewritten = gold.replace("frac", "dfrac").replace("ddfrac", "dfrac")
    pairs.append((gold, f"${rewritten}$."))
  pairs += list(itertools.pairwise(golds))[::8]
  return pairs


def _report(name: str, pairs: Pairs, judge: pool.Pool, seconds: float) -> None:
  math_verify_equal = _math_verify()
  our_seconds = their_seconds = 0.0
  ours: list[str] = []
  theirs: list[bool] = []
  # In blocks, one after the other: the machine's other work hits both alike.
  block = max(1, len(pairs) // 20)
  for start in range(0, len(pairs), block):
    part = pairs[start : start + block]
    began = time.monotonic()
    ours += [verdict.value for verdict in judge.compare_many(part)]
    our_seconds += time.monotonic() - began
    began = time.monotonic()
    theirs += [math_verify_equal(*pair) for pair in part]
    their_seconds += time.monotonic() - began
    if our_seconds + their_seconds > seconds:
      break
  done = len(ours)
  # Only now: asking before would fill the caches that the clock runs against.
  fast_count = sum(fast.compare(*pair) is not None for pair in pairs)
  version = metadata.version("math-verify")
  print(
    f"{name}: {done:,} pairs; synthjax {done / our_seconds:,.0f} a second, math-verify {version} "
    f"alone {done / their_seconds:,.0f} a second: {their_seconds / our_seconds:.1f}x; the fast "
    f"path settles {100 * fast_count / len(pairs):.1f} %"
  )
  _list_differences(pairs, ours, theirs)


def _list_differences(pairs: Pairs, ours: list[str], theirs: list[bool]) -> None:
  seen = set()
  for pair, verdict, equal in zip(pairs, ours, theirs):
    case = (pair, verdict, equal)
    if verdict == "undecided" or (verdict == "equal") == equal or case in seen:
      continue
    seen.add(case)
    gold, answer = pair
    path = "guard or mended spelling"
    if fast.compare(gold, answer) is not None:
      path = "fast path"
    there = "equal" if equal else "not equal"
    print(f"  {gold!r} and {answer!r}: {verdict} here ({path}), {there} there")


def _math_verify() -> Callable[[str, str], bool]:
  """math-verify alone, as (gold, answer) -> equal; without its time limits, which cost time."""
  import logging

  import math_verify

  logging.getLogger("math_verify").setLevel(logging.ERROR)

  @functools.cache
  def config():
    return [math_verify.LatexExtractionConfig(boxed_match_priority=0)]

  def parse(text):
    return math_verify.parse(r"\boxed{" + text + "}", config(), parsing_timeout=None)

  return lambda gold, answer: math_verify.verify(parse(gold), parse(answer), timeout_seconds=None)
