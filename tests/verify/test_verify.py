import collections
import dataclasses
import itertools
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthjax import files
from synthjax.records import Verdict
from synthjax.verify import expressions, extract, fast, numeric, pool, symbolic
from synthjax.verify.policy import LM_EVAL, STRICT, EqualityPolicy


@pytest.fixture(scope="module")
def judge():
  with pool.Pool() as judge:
    yield judge


@pytest.mark.parametrize(
  ("mode", "text", "answer"),
  [
    ("hash", "so\n#### 1,200\nmore", "1,200"),
    ("hash", "no marker", None),
    ("hash", "####  ", None),
    ("hash", "#### 1\n#### 2", "2"),
    ("hash", "#### **18**", "18"),
    ("hash", "#### 18 dollars every day at the market", "18 dollars"),
    ("hash", "#### **", None),
    ("final_line", "3 + 4 = 7 ; Answer: 7", "7"),
    ("final_line", "**Answer:** 7 (since 3 + 4 is)", "7"),
    ("final_line", "**Answer:**\n\n7", "7"),
    ("answer_is", "The answer is 6. Then more.", "6"),
    ("answer_is", "The answer is 6.5.", "6.5"),
    ("answer_is", "The answer is **42**.", "42"),
    ("answer_is", "The answer: 6", None),
    ("answer_is", "The answer is 6, because 2+4 is.", "6"),
    ("answer_is", "The answer is $x=3$ or $x=4$.", "$x=3$ or $x=4$"),
    ("answer_is", r"The answer is $\frac{1}{2}$ of the whole pizza.", r"$\frac{1}{2}$"),
    ("answer_is", "The answer is 5 choose two.", "5 choose two"),
    ("a_line", "x\nA: 18", "18"),
    ("a_line", "A: 18", "18"),
    ("a_line", "USA: 18", None),
    ("boxed", r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ("boxed", r"\boxed{1} \boxed{2", None),
    ("boxed", r"\fbox{a}", "a"),
    ("boxed", r"\boxed 5", "5"),
    ("boxed", r"\boxed{\{1,2\}}", r"\{1,2\}"),
    ("boxed", r"\boxed{}", None),
    ("boxed", "5", None),
    ("boxed", r"\boxed{\boxed{2}}", "2"),
    ("boxed", r"\boxed{2} and \boxed{3}", "3"),
    ("boxes", r"$\boxed{2}$ and $\boxed{3}$", "2, 3"),
    ("boxes", r"\boxed{1}, \boxed{2}, and \boxed{3}.", "1, 2, 3"),
    ("boxes", r"x=\boxed{1},\quad y=\boxed{2}", "1, 2"),
    ("boxes", r"**\boxed{2}** or **\boxed{3}**", "2, 3"),
    ("boxes", r"\boxed{3}. So \boxed{3}", "3"),
    ("boxes", r"\boxed{2} \boxed{3}", "3"),
    ("boxes", r"\boxed{2 so \boxed{3}", "3"),
    ("minerva", "Final Answer: The final answer is $2$. I hope it is correct.", "$2$"),
    ("minerva", "The final answer is $2$. ", "$2$"),
    ("minerva", "The final answer is **$2$** and **$3$**. I hope it is correct", "$2$ and $3$"),
    ("minerva", "none", None),
    ("last_math", r"we get $x=2$ and so \(y = 3\).", "y = 3"),
    ("last_math", r"so \[ \boxed{7} \]", "7"),
    ("last_math", "costs $5", None),
    ("last_number", "first 3 and $1,200.50 later", "$1,200.50"),
    ("last_number", "none", None),
    ("last_number", "the code AZYUK2A", None),
    ("last_number", "3 of the 2nd, x2", "3"),
    ("last_number", "10-5 km", "5"),
    ("last_number", "-3", "-3"),
    ("last_number", "about 12km", "12"),
    ("last_number", "it is .5", ".5"),
    ("stated", "so the answer is 5.", "5"),
    ("stated", "**Final Answer:** 3/4", "3/4"),
    ("stated", "Answer = 7 (as 3 + 4)", "7"),
    ("stated", "answers vary", None),
    ("math_order", r"\boxed{2}. The answer is 3", "2"),
    ("math_order", "The answer is 3", "3"),
    ("math_order", "so $x$ is $3$", "3"),
    ("math_order", "3", None),
    ("gsm8k_order", "The answer is 3\n#### 4", "4"),
    ("gsm8k_order", "so 5 of them", "5"),
    ("gsm8k_order", "", None),
  ],
)
def test_extraction_follows_the_mode(mode, text, answer):
  assert extract.extract(text, mode) == answer


LONG = {
  "spaces": "The answer is" + " " * 50_000 + "x",
  "stars": "answer" + " " * 50_000 + "**",
  "dollars": "$ " * 25_000,
  "brackets": r"\(" * 25_000,
  "open boxes": r"\boxed{" * 7_000,
  "boxes": r"\boxed{1}, " * 5_000,
  "apart": r"\boxed{1}" + " " * 50_000 + r", \boxed{2}",
  "commas": "#### 5" + ", " * 25_000,
  "digits": "1," * 25_000 + "a",
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_long_responses_take_time_in_proportion(text):
  began = time.process_time()
  for mode in extract.MODES:
    extract.extract(text, mode)
  assert time.process_time() - began < 5.0, "a search that tries every pair of places takes minutes"


def test_an_unknown_mode_lists_the_known_ones():
  with pytest.raises(ValueError, match="extraction mode 'guess': expected one of hash, answer_is"):
    extract.extract("x", "guess")


EQUAL = [
  ("1200", "1,200"),
  ("5", "$5.00"),
  ("5", r"\$5"),
  ("-3", "\N{MINUS SIGN}3"),
  ("7", "7."),
  ("1000", r"1\,000"),
  ("1000", "1{,}000"),
  (r"\frac{1}{2}", "1/2"),
  (r"\frac{1}{2}", "0.5"),
  (r"\frac12", r"\dfrac{1}{2}"),
  ("1.5", r"1\frac{1}{2}"),
  ("1.5", "1 1/2"),
  ("1/3", r"0.\overline{3}"),
  ("3", "three"),
  ("20", "Twenty"),
  ("5", r"5\text{ cm}"),
  ("5", "5 apples"),
  ("90", r"90^\circ"),
  ("5", "x=5"),
  ("x=5", "5"),
  (r"16\text{ daps}", "16"),
  ("300000", r"3\times 10^5"),
  ("10^{100}", "1e100"),
  ("(1,2)", r"\left(1, 2\right)"),
  ("(1,2]", "( 1 , 2 ]"),
  (r"\{1,2\}", r"\{2,1\}"),
  ("1,2", "2, 1"),
  ("A", "(A)"),
  ("A", "(a)"),
  (r"\text{Monday}", "monday"),
  (r"\pi", "pi"),
  ("2", "(2)"),
  ("1800000000", "1.8 billion"),
  ("4:30 p.m.", "4:30 PM"),
  (r"\text{(C)}", "C"),
  ("1,000", "1, 000"),
  ("(-\\infty, 2)", "(-infinity,2)"),
  (r"\emptyset", r"\{\}"),
  ("x=2", "x=4/2=2"),
  ("x=2", "2=x"),
  (r"\langle 1,2\rangle", "(1,2)"),
  ("0.123456789", "0.123457"),
  # By value at random points, to 60 digits or exactly.
  ("x+1", "1+x"),
  (r"\sqrt{8}", r"2\sqrt{2}"),
  (r"\sqrt{51}", "sqrt(51)"),
  (r"\sqrt{51}", "\N{SQUARE ROOT}51"),
  ("f(x)^2/2", r"\frac{f(x)^2}{2}"),
  ("x(x+1)", "x^2+x"),
  (r"\frac{1}{3}", "0.3333333"),
  (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
  ("3+4i", "4i+3"),
  ("1+i", r"\frac{2}{1-i}"),
  (r"e^{i\pi/2}", "i"),
  (r"\vec{v}=(1,2)", "(1,2)"),
  (r"\sin 30^\circ", "1/2"),
  ("1/2004!", "1/(2004*2003!)"),
  ("ab", "ba"),
  ("2^{10}", "1024"),
  (r"\binom{5}{2}", "10"),
  # Units, names, lists, relations, intervals.
  (r"25\pi", r"25\pi\text{ cm}^2"),
  (r"12\text{ cm}", "12 centimeters"),
  (r"3\text{ square feet}", r"3\text{ ft}^2"),
  (r"\$1.50", "1.5 dollars"),
  (r"10\%", "10%"),
  ("10", "10%"),
  ("x=3,y=4", "y=4, x=3"),
  ("(3,4)", "x=3, y=4"),
  (r"2 \text{ or } -3", "2, -3"),
  ("2;3", "2,3"),
  (r"6, 8\text{, and }10", "6, 8 and 10"),
  (r"1\pm\sqrt{2}", r"1+\sqrt2, 1-\sqrt2"),
  ("y=2x+1", "2x-y+1=0"),
  ("x<5", "5>x"),
  ("2x<10", "x<5"),
  (r"(5,\infty)", "x>5"),
  ("1<x\\le2", "(1,2]"),
  (r"x \in [1,2]", "[1,2]"),
  (r"[0,1)\cup(2,3]", r"(2,3] \cup [0,1)"),
  (r"(-\infty,1)\cup(2,\infty)", r"x<1 \text{ or } x>2"),
  (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix} 1 \\ 2\end{bmatrix}"),
  (r"\{2\}", "2"),
]
DIFFERENT = [
  ("7", "8"),
  ("5", "-5"),
  ("(1,2)", "(2,1)"),
  ("(1,2)", "(1,2]"),
  (r"\{1,2\}", r"\{1,3\}"),
  ("A", "B"),
  ("5", "yellow"),
  ("10 AM", "10 PM"),
  (r"\sqrt{2}", "1.5"),
  (r"2\sqrt{3}", r"3\sqrt{2}"),
  ("x^2+1", "x^2+2"),
  ("5", "(1,5)"),
  ("50", "10+John's age"),
  ("1", "11"),
  ("24", "25 zebras"),
  # False yeses that were learned from: issue 13.
  ("5", "5 xy"),
  ("4", "4 sec x"),
  ("x=3, y=4", "x=4, y=3"),
  ("x=3, y=4", "4, 3"),
  ("y=x", "x=x"),
  ("x=5", "y=5"),
  ("6", "2+4"),
  ("6", "3!"),
  ("2", r"\sqrt{4}"),
  ("0.1", "10%"),
  (r"12\text{ cm}", r"12\text{ m}"),
  ("440 cm^2", "440 cm^4"),
  (r"\$5", "5 cents"),
  ("3", r"3\text{ million}"),
  ("x^2+121=0", "1=2"),
  ("0.5", r"0.5\%"),
  (r"\sin 30^\circ", r"\sin 30"),
  ("f(x)^2/2", "fx^2/2"),
  ("3m", "3"),
  ("10^{100}+1", "10^{100}+2"),
  ("1/2004!", "1/2006!"),
  ("x<5", "x>5"),
  ("x<5", r"x\le 5"),
  ("x=5", "2x=10"),
  ("(1,2)", r"1\le x\le 2"),
  ("x", "X"),
  ("p - q", "p - Q"),
  ("(1,2)", r"\{1,2\}"),
  ("[-2,0]", "[0,-2]"),
  ("3:4", "4:3"),
  ("52_8", "52_7"),
  ("e", "2.718"),
  (r"\sin x", r"\cos x"),
  ("0.123456", "0.1234567"),
  # Large numbers: nothing overflows.
  (r"\sqrt{2}", "10^{400}"),
  (r"\sqrt{2}", "1e309"),
  (r"\sqrt{2}", "9.9e399"),
]
# The workers' turn: what is ambiguous, and what the forms do not cover.
UNCERTAIN = [
  ("1234", "1, 034"),
  ("5", "5 choose two"),
  ("5", "5 less than x"),
  ("5", "5 tenths"),
  ("5", "5 not"),
  ("5", "5 m"),
  ("7", "7} , 5"),
  (r"\frac{x}{2}", "1/2x"),
  (r"\log 100", "2"),
  ("[0,2]", r"[0,1]\cup[1,2]"),
  ("x^2=4", "x^2=-4"),
  ("10^{-60}", r"\sqrt{2}-\sqrt{2}"),
  ("y(x)", "xy"),
  ("(x+i)(x-i)", "x^2+1"),
  (r"\sqrt{5}", "9^9^9"),
  ("ABC", "BAC"),
]


@pytest.mark.parametrize(
  ("gold", "found", "expected"),
  [
    *((*pair, True) for pair in EQUAL),
    *((*pair, False) for pair in DIFFERENT),
    *((*pair, None) for pair in UNCERTAIN),
  ],
)
def test_the_fast_path_is_right_or_says_that_it_does_not_know(gold, found, expected):
  assert fast.compare(gold, found) is expected


@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_fractions_are_equal_exactly_when_their_values_are(a, b):
  assert fast.compare(
    rf"\frac{{{a.numerator}}}{{{a.denominator}}}", f"{b.numerator}/{b.denominator}"
  ) is (a == b)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_makes_the_fast_path_raise_and_it_is_symmetric_in_what_it_is_certain_of(a, b):
  one, other = fast.compare(a, b), fast.compare(b, a)
  assert one == other or None in (one, other)


@given(st.integers(-50, 50), st.integers(1, 50), st.integers(0, 30))
def test_closed_forms_have_their_value(a, b, c):
  expression = expressions.parse(rf"{a} + \frac{{\sqrt{{{c}}}}}{{{b}}} - 2\pi")
  assert float(numeric.fingerprint(expression)) == pytest.approx(
    a + c**0.5 / b - 2 * 3.141592653589793
  )


@pytest.mark.parametrize(
  "text",
  [
    "",
    "(" * 300,
    "9^9^9",
    "3(4)",
    r"3\frac12",
    "1..2",
    "x = 3",
    "_",
    "1/2x",
    "x^23",
    "sinx",
    "sqrtx",
    "cm",
    "abcd",
    "AB",
    "x2",
    "f^{-1}(x)",
    "y(x)",
    r"\sin(x)^2",
    r"\sin^{-1} x",
    r"\log x",
    r"\sqrt51",
    "30^\\circ",
    "\x00",
  ],
)
def test_what_can_be_read_in_two_ways_is_not_read(text):
  assert expressions.parse(text) is None


@pytest.mark.parametrize(
  "text",
  [
    "1/0",
    "2^{99999}",
    r"\sqrt{-1}",
    "10^{40}\\pi",
    "0^{-1}",
    "99999!",
    r"\sqrt[101]{2}",
    r"\tan(x)^{0.5}",
  ],
)
def test_what_has_no_certain_value_is_neither_equal_nor_different(text):
  expression = expressions.parse(text)
  assert expression is None or numeric.same(expression, expression) is None


@pytest.mark.parametrize(
  ("gold", "found", "value"),
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
def test_mathematics_is_judged_by_the_workers(judge, gold, found, value):
  assert judge.compare(gold, found).value == value


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
  assert {"name", "structure", *SWITCHES} == {
    field.name for field in dataclasses.fields(EqualityPolicy)
  }
  for switch, (gold, found) in SWITCHES.items():
    assert symbolic.compare(gold, found, STRICT).value == "different", switch
    assert (
      symbolic.compare(gold, found, dataclasses.replace(STRICT, **{switch: False})).value == "equal"
    ), switch


@pytest.mark.parametrize(
  ("gold", "found"),
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
def test_the_policy_of_lm_eval_is_math_verifys_word(gold, found):
  from synthjax.bench import verify as bench

  assert symbolic.compare(gold, found, LM_EVAL).value == "equal" and bench._math_verify()(
    gold, found
  )


@pytest.mark.parametrize(
  ("gold", "found", "reason"),
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
def test_what_cannot_be_decided_says_why(judge, gold, found, reason):
  verdict = judge.compare(gold, found)
  assert (verdict.value, verdict.reason) == ("undecided", reason)


def test_an_exception_in_the_parent_is_an_undecided_answer(monkeypatch):
  def fails(*_):
    raise OverflowError("of this answer alone")

  monkeypatch.setattr(fast, "compare", fails)
  assert pool.settle("1", "2") == Verdict("undecided", "error: OverflowError")


def test_every_gold_answer_of_math_equals_itself_but_the_two_empty_ones(judge, shared_data):
  golds = [
    row["answer"]
    for split in ("train", "test")
    for row in files.read_jsonl(shared_data / f"math/{split}.jsonl")
  ]
  verdicts = judge.compare_many([(gold, gold) for gold in golds])
  assert len(golds) == 12_500
  assert [(g, v.value, v.reason) for g, v in zip(golds, verdicts) if not v.correct] == [
    ("", "undecided", "no-answer")
  ] * 2


# Golds of two problems of one subject and level that are the same answer, written in two ways: not false yeses.
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
  for split in ("train", "test"):
    for row in files.read_jsonl(shared_data / f"math/{split}.jsonl"):
      groups[row["subject"], row["level"]].append(row["answer"])
  shuffled = random.Random(1)
  pairs = []
  for golds in groups.values():
    others = golds[:]
    shuffled.shuffle(others)
    pairs += [(a, b) for a, b in zip(golds, others) if a.strip() and b.strip() and a != b]
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
    pairs = [
      (
        extract.extract(row["ground_truth"], "a_line"),
        extract.extract(row[model]["solution"], "a_line"),
      )
      for row in rows
    ]
    rewards = [verdict.correct for verdict in judge.compare_many(pairs)]
    assert rewards == [int(row[model]["is_correct"]) for row in rows]
    assert sum(rewards) / len(rows) == pytest.approx(accuracy, abs=5e-4)


def test_the_fast_path_settles_nearly_all_model_answers_and_never_contradicts_math_verify(
  shared_data,
):
  from synthjax.bench import verify as bench

  alone = bench._math_verify()
  for pairs, share in (
    (bench.gsm8k_answers(shared_data), 0.99),
    (bench.math_answers(shared_data), 0.98),
  ):
    verdicts = {pair: fast.compare(*pair) for pair in pairs}
    assert sum(verdicts[pair] is not None for pair in pairs) / len(pairs) >= share
    distinct = [(pair, same) for pair, same in verdicts.items() if same is not None][:1000]
    assert [pair for pair, same in distinct if same != alone(*pair)] == []


def test_no_source_file_of_the_package_executes_text():
  import pathlib
  import re

  import synthjax

  forbidden = re.compile(
    r"\b(?<![\w.])(?:eval|exec|sympify|parse_expr|os\.system)\(|shell=True|pickle\.loads?\(|(?<!\w)S\("
  )
  root = pathlib.Path(synthjax.__file__).parent
  found = [
    (path.name, line)
    for path in root.rglob("*.py")
    for line in path.read_text().splitlines()
    if forbidden.search(line)
  ]
  assert found == []


def test_pools_work_from_threads_and_answer_equal_pairs_once(judge):
  import concurrent.futures

  cases = [(f"|{k}x|", f"{k}|x|") for k in range(2, 12)]
  before = judge.counts["symbolic"]
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    verdicts = list(threads.map(lambda pair: judge.compare(*pair).value, cases * 3))
  assert verdicts == ["equal"] * 30
  assert 10 <= judge.counts["symbolic"] - before <= 30
  before = judge.counts["symbolic"]
  assert {v.value for v in judge.compare_many(cases * 5)} == {"equal"}
  assert judge.counts["symbolic"] == before


def test_the_shared_pool_works_inside_a_beam_dofn():
  import apache_beam as beam
  from apache_beam.runners.portability import fn_api_runner

  class Judge(beam.DoFn):
    def process(self, pair):
      yield pair, pool.compare_many([pair])[0].value

  found = []
  with beam.Pipeline(runner=fn_api_runner.FnApiRunner()) as pipeline:
    _ = (
      pipeline
      | beam.Create([("|2x|", "2|x|"), ("1", "2")])
      | beam.ParDo(Judge())
      | beam.combiners.ToList()
      | beam.Map(_check)
    )
  assert found == []


def _check(rows):
  assert sorted(rows) == [(("1", "2"), "different"), (("|2x|", "2|x|"), "equal")]


def _children() -> set[int]:
  """Process numbers of this process's verification workers."""
  import psutil

  return {
    child.pid
    for child in psutil.Process().children()
    if "synthjax.verify.worker" in child.cmdline()
  }


def test_a_workers_death_touches_its_own_case_alone_and_workers_import_no_jax():
  import os
  import signal
  import threading

  before = _children()
  with pool.Pool(limits=pool.Limits(workers=1)) as judge:
    for k in range(2, 4):  # both processes are up
      assert judge.compare(f"|{k}x|", f"{k}|x|").value == "equal"
    workers = _children() - before
    assert len(workers) == 2
    for worker in workers:
      with open(f"/proc/{worker}/maps") as f:
        assert "jaxlib" not in f.read()
    killer = threading.Timer(0.7, lambda: [os.kill(worker, signal.SIGKILL) for worker in workers])
    killer.start()
    verdict = judge.compare("|x|", r"\prod_{k=1}^{1000003} k")
    killer.join()
    assert (verdict.value, verdict.reason) == ("undecided", "memory")
    assert [judge.compare(f"|{k}x|+1", f"{k}|x|+1").value for k in range(2, 6)] == ["equal"] * 4
    assert judge.counts["replaced"] == 2


def test_workers_are_replaced_after_their_share_of_cases():
  with pool.Pool(limits=pool.Limits(workers=1, cases=2)) as judge:
    for k in range(2, 10):
      assert judge.compare(f"|{k}x|", f"{k}|x|").value == "equal"
    assert judge.counts["replaced"] >= 3


@pytest.mark.parametrize(
  ("gold", "found"),
  list(
    itertools.product(["42"], ["\x00", "\ud800", "{", "}", "\\", "\\boxed", "$", "^", "%", "\n"])
  ),
)
def test_odd_characters_are_data(judge, gold, found):
  assert judge.compare(gold, found).value in ("different", "undecided")
