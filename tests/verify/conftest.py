import random

import pytest

from synthjax import files
from synthjax.verify import extract, pool


@pytest.fixture(scope="module")
def judge():
  with pool.Pool() as judge:
    yield judge


@pytest.fixture
def golds(shared_data):
  """Known answers of MATH, GSM8K and our own, drawn by a generator: `golds(random)`."""

  def draw(random_):
    math = []
    for split in ("train", "test"):
      math += [row["answer"] for row in files.read_jsonl(shared_data / f"math/{split}.jsonl")]
    gsm8k = set()
    for row in files.read_jsonl(shared_data / "gsm8k/test.jsonl"):
      gsm8k.add(extract.extract(row["answer"], "hash"))
    # Plain numbers are most of MATH too; what is more than a number has more ways to be nearly the
    # same.
    formulas = {gold for gold in math if gold.strip() and not gold.isdigit()}
    drawn = random_.sample(sorted(formulas), 1_400)
    drawn += random_.sample(sorted(gsm8k), 200)
    return drawn + [_own_gold(random_) for _ in range(500)]

  return draw


# A, B and C are coefficients; D and E are larger than any of them.
_FORMS = (
  "Ax^2+By^2=C",
  "y=Ax-B",
  "x=A, y=D",
  "x^2+A=0",
  r"A<x\le D",
  r"x\ge A",
  r"A\text{ cm}",
  r"A\text{ m}^2",
  r"\frac{A}{B}\text{ miles}",
  r"\sin^2 Ax+\cos B",
  "(A,D,C)",
  "[A,D)",
  r"\frac{Ax+B}{x-C}",
  r"A\sqrt{B}+C",
  "f(x)=Ax^2-B",
  r"A\%",
  r"\$A.50",
  "e^{Ax}",
  "x=A",
  "A+Bi",
  "A_{E}",
  "n(n+A)",
  r"\ln A+x",
  r"A^\circ",
  "A:D",
)
_OFFSETS = {"A": 0, "B": 0, "C": 0, "D": 20, "E": 10}


def _own_gold(random_: random.Random) -> str:
  """An equation, inequality, assignment, unit, function or tuple with random coefficients."""
  form = random_.choice(_FORMS)
  gold = ""
  for character in form:
    if character in _OFFSETS:
      gold += str(random_.randint(2, 19) + _OFFSETS[character])
    else:
      gold += character
  return gold
