import collections
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthjax import files
from synthjax.verify import extract, fast, numeric, pool, symbolic
from synthjax.verify.policy import LM_EVAL, STRICT


@pytest.fixture(scope="module")
def judge():
  with pool.Pool() as judge:
    yield judge


@pytest.mark.parametrize(("mode", "text", "answer"), [
  ("hash", "so\n#### 1,200\nmore", "1,200"), ("hash", "no marker", None), ("hash", "####  ", None), ("hash", "#### 1\n#### 2", "2"),
  ("final_line", "3 + 4 = 7 ; Answer: 7", "7"), ("answer_is", "The answer is 6. Then more.", "6"), ("answer_is", "The answer is 6.5.", "6.5"),
  ("answer_is", "The answer: 6", None), ("a_line", "x\nA: 18", "18"), ("a_line", "A: 18", "18"), ("a_line", "USA: 18", None),
  ("boxed", r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"), ("boxed", r"\boxed{1} \boxed{2", None), ("boxed", r"\fbox{a}", "a"),
  ("boxed", r"\boxed 5", "5"), ("boxed", r"\boxed{\{1,2\}}", r"\{1,2\}"), ("boxed", r"\boxed{}", None), ("boxed", "5", None),
  ("minerva", "Final Answer: The final answer is $2$. I hope it is correct.", "$2$"), ("minerva", "The final answer is $2$. ", "$2$"),
  ("last_number", "first 3 and $1,200.50 later", "$1,200.50"), ("last_number", "none", None),
])
def test_extraction_follows_the_mode(mode, text, answer):
  assert extract.extract(text, mode) == answer


def test_an_unknown_mode_lists_the_known_ones():
  with pytest.raises(ValueError, match="extraction mode 'guess': expected one of hash, answer_is"):
    extract.extract("x", "guess")


EQUAL = [
  ("1200", "1,200"), ("5", "$5.00"), ("5", r"\$5"), ("-3", "\N{MINUS SIGN}3"), ("7", "7."), ("1000", r"1\,000"), ("1000", "1{,}000"),
  (r"\frac{1}{2}", "1/2"), (r"\frac{1}{2}", "0.5"), (r"\frac12", r"\dfrac{1}{2}"), ("1.5", r"1\frac{1}{2}"), ("1.5", "1 1/2"),
  ("3", "three"), ("20", "Twenty"), ("5", r"5\text{ cm}"), ("5", "5 apples"), ("90", r"90^\circ"), ("5", "x=5"), ("x=5", "5"),
  ("300000", r"3\times 10^5"), ("10^{100}", "1e100"), ("(1,2)", r"\left(1, 2\right)"), ("(1,2]", "( 1 , 2 ]"), (r"\{1,2\}", r"\{2,1\}"),
  ("1,2", "2, 1"), ("A", "(A)"), (r"\text{Monday}", "monday"), (r"\pi", "pi"), ("2", "(2)"), ("1800000000", "1.8 billion"),
  (r"\text{(C)}", "C"), ("1,000", "1, 000"), ("(-\\infty, 2)", "(-infinity,2)"),
]
DIFFERENT = [
  ("7", "8"), ("5", "-5"), ("(1,2)", "(2,1)"), ("(1,2)", "(1,2]"), (r"\{1,2\}", r"\{1,3\}"), ("A", "B"), ("5", "yellow"), ("10 AM", "10 PM"),
  (r"\sqrt{2}", "1.5"), (r"2\sqrt{3}", r"3\sqrt{2}"), ("x^2+1", "x^2+2"), ("5", "(1,5)"), ("50", "10+John's age"), ("1", "11"),
]
UNCERTAIN = [("50", r"50\%"), (r"\frac{1}{3}", "0.3333333"), ("x+1", "1+x"), (r"\sqrt{8}", r"2\sqrt{2}"), ("ab", "ba"), ("e", "2.718"),
             (r"\sin x", r"\cos x"), ("1234", "1, 234"), ("(1,2)", r"\{1,2\}")]


@pytest.mark.parametrize(("gold", "found", "expected"), [
  *((*pair, True) for pair in EQUAL), *((*pair, False) for pair in DIFFERENT), *((*pair, None) for pair in UNCERTAIN)])
def test_the_fast_path_is_right_or_says_that_it_does_not_know(gold, found, expected):
  assert fast.compare(gold, found) is expected


@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_fractions_are_equal_exactly_when_their_values_are(a, b):
  assert fast.compare(rf"\frac{{{a.numerator}}}{{{a.denominator}}}", f"{b.numerator}/{b.denominator}") is (a == b)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_makes_the_fast_path_raise_and_it_is_symmetric_in_what_it_is_certain_of(a, b):
  one, other = fast.compare(a, b), fast.compare(b, a)
  assert one == other or None in (one, other)


@given(st.integers(-50, 50), st.integers(1, 50), st.integers(0, 30))
def test_closed_forms_have_their_value(a, b, c):
  assert numeric.value(rf"{a} + \frac{{\sqrt{{{c}}}}}{{{b}}} - 2\pi") == pytest.approx(a + c**0.5 / b - 2 * 3.141592653589793)


@pytest.mark.parametrize("text", ["", "(" * 300, "1/0", "9^9^9", "2^{99999}", r"\sqrt{-1}", "i", r"\sin x", "3(4)", "1..2", "x = 3", "_"])
def test_what_has_no_certain_value_has_none(text):
  assert numeric.value(text) is None


@pytest.mark.parametrize(("gold", "found", "value"), [
  (r"\sqrt{8}", r"2\sqrt{2}", "equal"), ("x+1", "1+x", "equal"), (r"\frac{1}{3}", "0.3333333", "equal"), (r"(x+1)^2", "x^2+2x+1", "equal"),
  (r"\frac{\pi}{2}", r"0.5\pi", "equal"), ("7", None, "undecided"), ("7", "", "undecided"), ("7", "1" * 300, "undecided"),
  ("x^2", r"\frac{1", "undecided"), (r"\frac{12}{5,\!525}", r"\frac{12}{5525}", "equal"), (r"\frac \pi4 + 2", r"2+\frac{\pi}{4}", "equal"),
])
def test_mathematics_is_judged_by_the_workers(judge, gold, found, value):
  assert judge.compare(gold, found).value == value


GUARDED = {
  "equation": ("3", "5=3"), "ellipsis": ("1,2", r"1,2,\ldots"), "subscript": ("52", "52_8"), "digits": ("1/2004!", "1/2006!"),
  "tuples": ("(1,2)", r"\{1,2\}"),
}


@pytest.mark.parametrize("switch", GUARDED)
def test_each_guard_takes_back_a_yes_of_math_verify_by_its_switch(switch):
  gold, found = GUARDED[switch]
  assert symbolic.compare(gold, found, LM_EVAL).value == "equal"
  assert symbolic.compare(gold, found, STRICT).value == "different"


def test_a_guard_leaves_what_it_is_not_about_alone():
  for gold, found in (("x=3", "x=3"), ("3", "x=3"), ("1,2", "2,1"), (r"\{1,2\}", r"\{2,1\}"), ("52_8", "52_{8}"), ("1/2004!", "1/2004!")):
    assert fast.compare(gold, found) or symbolic.compare(gold, found, STRICT).value == "equal", (gold, found)


def test_every_gold_answer_of_math_equals_itself_but_the_two_empty_ones(judge, shared_data):
  golds = [row["answer"] for split in ("train", "test") for row in files.read_jsonl(shared_data / f"math/{split}.jsonl")]
  verdicts = judge.compare_many([(gold, gold) for gold in golds])
  assert len(golds) == 12_500
  assert [(g, v.value, v.reason) for g, v in zip(golds, verdicts) if not v.reward] == [("", "undecided", "no-answer")] * 2


# Golds of two problems of one subject and level that are the same answer, written in two ways: not false yeses.
SAME_ANSWERS = {("1", "x=1"), (r"\$0.50", r"\frac{1}{2}"), (r"\frac{17}{2}", "8.5"), ("4", r"\$4"), ("45", r"45^\circ"),
                (r"100\text{ square units}", "100"), ("9", r"9^\circ"), (r"20\%", "20")}


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
  equal = {pair for pair, verdict in zip(pairs, judge.compare_many(pairs)) if verdict.reward}
  assert equal <= SAME_ANSWERS


MODELS = {"6b_finetuning": 0.217, "6b_verification": 0.390, "175b_finetuning": 0.347, "175b_verification": 0.563}


def test_verdicts_on_openais_gsm8k_samples_are_those_of_the_file(judge, shared_data):
  rows = list(files.read_jsonl(shared_data / "llm_generated/gsm8k_example_model_solutions.jsonl"))
  for model, accuracy in MODELS.items():
    pairs = [(extract.extract(row["ground_truth"], "a_line"), extract.extract(row[model]["solution"], "a_line")) for row in rows]
    rewards = [verdict.reward for verdict in judge.compare_many(pairs)]
    assert rewards == [int(row[model]["is_correct"]) for row in rows]
    assert sum(rewards) / len(rows) == pytest.approx(accuracy, abs=5e-4)


def test_the_fast_path_settles_nearly_all_model_answers_and_never_contradicts_math_verify(shared_data):
  from synthjax.bench import verify as bench

  alone = bench._math_verify()
  for pairs, share in ((bench.gsm8k_answers(shared_data), 0.99), (bench.math_answers(shared_data), 0.85)):
    verdicts = {pair: fast.compare(*pair) for pair in pairs}
    assert sum(verdicts[pair] is not None for pair in pairs) / len(pairs) >= share
    distinct = [(pair, same) for pair, same in verdicts.items() if same is not None][:1500]
    assert [pair for pair, same in distinct if same != alone(*pair)] == []


def test_no_source_file_of_the_package_executes_text():
  import pathlib
  import re

  import synthjax

  forbidden = re.compile(r"\b(?<![\w.])(?:eval|exec|sympify|parse_expr|os\.system)\(|shell=True|pickle\.loads?\(|(?<!\w)S\(")
  root = pathlib.Path(synthjax.__file__).parent
  found = [(path.name, line) for path in root.rglob("*.py") for line in path.read_text().splitlines() if forbidden.search(line)]
  assert found == []


def test_pools_work_from_threads_and_answer_equal_pairs_once(judge):
  import concurrent.futures

  cases = [(f"{k}\\sqrt{{8}}", f"{2 * k}\\sqrt{{2}}") for k in range(2, 12)]
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
    _ = pipeline | beam.Create([(r"\sqrt{12}", r"2\sqrt{3}"), ("1", "2")]) | beam.ParDo(Judge()) | beam.combiners.ToList() | beam.Map(_check)
  assert found == []


def _check(rows):
  assert sorted(rows) == [(("1", "2"), "different"), ((r"\sqrt{12}", r"2\sqrt{3}"), "equal")]


def _children() -> set[int]:
  """Process numbers of this process's verification workers."""
  import psutil

  return {child.pid for child in psutil.Process().children() if "synthjax.verify.worker" in child.cmdline()}


def test_a_workers_death_touches_its_own_case_alone_and_workers_import_no_jax():
  import os
  import signal
  import threading

  before = _children()
  with pool.Pool(limits=pool.Limits(workers=1)) as judge:
    for k in range(2, 4):  # both processes are up
      assert judge.compare(f"{k}\\sqrt{{8}}", f"{2 * k}\\sqrt{{2}}").value == "equal"
    workers = _children() - before
    assert len(workers) == 2
    for worker in workers:
      with open(f"/proc/{worker}/maps") as f:
        assert "jaxlib" not in f.read()
    killer = threading.Timer(0.7, lambda: [os.kill(worker, signal.SIGKILL) for worker in workers])
    killer.start()
    verdict = judge.compare("42", r"\prod_{k=1}^{1000003} k")
    killer.join()
    assert (verdict.value, verdict.reason) == ("undecided", "memory")
    assert [judge.compare(f"{k}\\sqrt{{18}}", f"{3 * k}\\sqrt{{2}}").value for k in range(2, 6)] == ["equal"] * 4
    assert judge.counts["replaced"] == 2


def test_workers_are_replaced_after_their_share_of_cases():
  with pool.Pool(limits=pool.Limits(workers=1, cases=2)) as judge:
    for k in range(2, 10):
      assert judge.compare(f"{k}\\sqrt{{8}}", f"{2 * k}\\sqrt{{2}}").value == "equal"
    assert judge.counts["replaced"] >= 3


@pytest.mark.parametrize(("gold", "found"), list(itertools.product(["42"], ["\x00", "\ud800", "{", "}", "\\", "\\boxed", "$", "^", "%", "\n"])))
def test_odd_characters_are_data(judge, gold, found):
  assert judge.compare(gold, found).value in ("different", "undecided")
