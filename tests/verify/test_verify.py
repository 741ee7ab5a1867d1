import collections
import dataclasses
import pathlib
import random
import re

import pytest

import synthjax
from synthjax import files
from synthjax.bench import verify as bench
from synthjax.records import Verdict
from synthjax.verify import extract, symbolic
from synthjax.verify.policy import LM_EVAL, STRICT, EqualityPolicy


def _math(shared_data):
  """Rows of all problems of MATH."""
  rows = []
  for split in ("train", "test"):
    rows += files.read_jsonl(shared_data / f"math/{split}.jsonl")
  return rows


@pytest.mark.parametrize(
  ("gold", "prediction", "value"),
  [
    (r"\sqrt{8}", r"2\sqrt{2}", "equal"),
    ("x+1", "1+x", "equal"),
    (r"\frac{1}{3}", "0.3333333", "equal"),
    (r"(x+1)^2", "x^2+2x+1", "equal"),
    (r"\frac{\pi}{2}", r"0.5\pi", "equal"),
    ("7", None, "undecided"),
    ("7", "", "undecided"),
    ("7", "1" * 300, "undecided"),
    ("x^2", r"\frac{1", "undecided"),
    ("|x|", r"\sqrt{x^2}", "equal"),
    (r"\log 100", "2", "equal"),
    (r"\log_2 8", "3", "equal"),
    ("[0,2]", r"[0,1]\cup[1,2]", "equal"),
    ("xy=1", "y=1/x", "equal"),
    ("x^2=4", "x^2=-4", "different"),
    ("X+|y|", "x+|y|", "different"),
    (r"\log x", r"\log_2 x", "different"),
    ("3", r"\log_2 8", "different"),
    ("1,|x|", r"\sqrt{x^2},1", "equal"),
    ("(|x|,1)", r"(1,|x|)", "different"),
    (r"\frac{12}{5,\!525}", r"\frac{12}{5525}", "equal"),
    (r"\frac \pi4 + 2", r"2+\frac{\pi}{4}", "equal"),
  ],
)
def test_mathematics_is_judged_by_the_workers(judge, gold, prediction, value):
  assert judge.compare(gold, prediction).value == value


SWITCHES = {
  "units": (r"12\text{ cm}", r"12\text{ m}"),
  "percent": ("0.1", r"10\%"),
  "names": ("x=5", "y=5"),
  "unevaluated": ("6", "2+4"),
  "equation": ("3", "5=3"),
  "rounding": (r"\frac{1}{3}", "0.33333349"),
  "subscript": ("52", "52_8"),
  "ellipsis": ("1,2", r"1,2,\ldots"),
  "tuples": ("(1,2)", r"\{2,1\}"),
  "intervals": ("(1,2)", "[1,2]"),
  "digits": (r"\log 2", "0.30103"),
}


def test_every_difference_from_math_verify_has_its_switch_and_a_case_that_it_decides():
  fields = {field.name for field in dataclasses.fields(EqualityPolicy)}
  assert fields == {"name", "structure", *SWITCHES}
  for switch, (gold, prediction) in SWITCHES.items():
    without = dataclasses.replace(STRICT, **{switch: False})
    assert symbolic.compare(gold, prediction, STRICT).value == "different", switch
    assert symbolic.compare(gold, prediction, without).value == "equal", switch


@pytest.mark.parametrize(
  ("gold", "prediction"),
  [
    ("3", "5=3"),
    ("52", "52_8"),
    ("1/2004!", "1/2006!"),
    ("(1,2)", r"\{1,2\}"),
    ("6", "2+4"),
    ("10", r"10\%"),
    ("5", "5m"),
  ],
)
def test_the_policy_of_lm_eval_is_math_verifys_word(gold, prediction):
  assert symbolic.compare(gold, prediction, LM_EVAL).value == "equal"
  assert bench._math_verify()(gold, prediction)


@pytest.mark.parametrize(
  ("gold", "prediction", "reason"),
  [
    ("7", "7} , 5", "unbalanced-prediction"),
    ("5", "5 choose two", "words-in-prediction"),
    (r"\frac{x}{2}", "1/2x", "ambiguous-prediction"),
    ("x^2", r"x \& y", "unparsed-prediction"),
    ("ABC", "BAC", "words-in-gold"),
    ("5", "", "no-answer"),
    ("5", "1" * 300, "too-long"),
  ],
)
def test_what_cannot_be_decided_says_why(judge, gold, prediction, reason):
  verdict = judge.compare(gold, prediction)
  assert (verdict.value, verdict.reason) == ("undecided", reason)


def test_every_gold_answer_of_math_equals_itself_but_the_two_empty_ones(judge, shared_data):
  golds = [row["answer"] for row in _math(shared_data)]
  assert len(golds) == 12_500
  verdicts = judge.compare_many([(gold, gold) for gold in golds])
  others = []
  for gold, verdict in zip(golds, verdicts):
    if not verdict.correct:
      others.append((gold, verdict))
  assert others == [("", Verdict("undecided", "no-answer"))] * 2


# Golds of two problems of one subject and level that are the same answer, written in two ways: no
# false yeses.
SAME_ANSWERS = {
  ("1", "x=1"),
  (r"\$0.50", r"\frac{1}{2}"),
  (r"\frac{17}{2}", "8.5"),
  ("4", r"\$4"),
  ("45", r"45^\circ"),
  (r"100\text{ square units}", "100"),
  ("9", r"9^\circ"),
  (r"20\%", "20"),
}


def test_golds_of_other_problems_are_almost_never_equal(judge, shared_data):
  groups = collections.defaultdict(list)
  for row in _math(shared_data):
    groups[row["subject"], row["level"]].append(row["answer"])
  shuffled = random.Random(1)
  pairs = []
  for golds in groups.values():
    others = golds[:]
    shuffled.shuffle(others)
    for gold, other in zip(golds, others):
      if gold.strip() and other.strip() and gold != other:
        pairs.append((gold, other))
  assert len(pairs) > 12_000
  equal = {pair for pair, verdict in zip(pairs, judge.compare_many(pairs)) if verdict.correct}
  assert equal <= SAME_ANSWERS


MODELS = {
  "6b_finetuning": 0.217,
  "6b_verification": 0.390,
  "175b_finetuning": 0.347,
  "175b_verification": 0.563,
}


def test_verdicts_on_openais_gsm8k_samples_are_those_of_the_file(judge, shared_data):
  rows = list(files.read_jsonl(shared_data / "llm_generated/gsm8k_example_model_solutions.jsonl"))
  for model, accuracy in MODELS.items():
    pairs = []
    for row in rows:
      gold = extract.extract(row["ground_truth"], "a_line")
      prediction = extract.extract(row[model]["solution"], "a_line")
      pairs.append((gold, prediction))
    rewards = [verdict.correct for verdict in judge.compare_many(pairs)]
    assert rewards == [int(row[model]["is_correct"]) for row in rows]
    assert sum(rewards) / len(rows) == pytest.approx(accuracy, abs=5e-4)


def test_no_source_file_of_the_package_executes_text():
  forbidden = re.compile(
    r"\b(?<![\w.])(?:eval|exec|sympify|parse_expr|os\.system)\("
    r"|shell=True|pickle\.loads?\(|(?<!\w)S\("
  )
  root = pathlib.Path(synthjax.__file__).parent
  offending = []
  for path in root.rglob("*.py"):
    lines = path.read_text().splitlines()
    offending += [(path.name, line) for line in lines if forbidden.search(line)]
  assert offending == []
