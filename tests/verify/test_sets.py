import json

import pytest

from synthjax import __main__, files
from synthjax.records import Trace, Verdict
from synthjax.verify import decontaminate, label, sets

CORRECT = Verdict("equal")
INCORRECT = Verdict("different")


def _traces(*texts, problem="p"):
  return [Trace(problem, text) for text in texts]


def test_traces_that_are_the_same_stay_once_and_every_rule_is_counted():
  long = (
    "first we take the number of apples and then we add the number of pears that she bought on "
    "monday "
  )
  traces = _traces(
    "2 + 3 = 5 so five",
    "2 + 3  =  5 SO five",
    "I say 2+3=5.",
    "3 + 2 = 5",
    long + "at noon",
    long + "at night",
    "no idea",
  )
  verdicts = [*[CORRECT] * 6, Verdict("undecided", "no-answer")]
  built = sets.build(traces, verdicts)
  texts = [trace.text for trace in built.positive]
  assert texts == ["2 + 3 = 5 so five", "3 + 2 = 5", long + "at noon"]
  assert built.report["removed"] == {
    "same text: right": 1,
    "same equations: right": 1,
    "near duplicate: right": 1,
    "undecided: no-answer": 1,
  }
  assert built.report["removed_ids"]["near duplicate: right"] == ["p:5"]


def test_correct_and_incorrect_traces_and_other_problems_are_sets_of_their_own():
  traces = [*_traces("1 = 1", "1 = 1"), *_traces("1 = 1", problem="q")]
  built = sets.build(traces, [CORRECT, INCORRECT, CORRECT])
  assert len(built.positive) == 2
  assert len(built.negative) == 1
  assert built.report["removed"] == {}


@pytest.mark.parametrize(
  ("text", "equations"),
  [
    ("She has 16 - 3 = <<16-3=13>>13 eggs. So 13 * $2 = $26 a day.", ("16-3=13", "13*2=26")),
    ("11 + 2 = 13 ; 13 - 5 = 8 ; Answer: 8", ("11+2=13", "13-5=8")),
    ("2+3=5.\n5 x 3 = 15", ("2+3=5", "5*3=15")),
    ("x = 3", ()),
    ("1,000 + 1 = 1,001", ("1000+1=1001",)),
  ],
)
def test_equations_are_read_without_the_words_around_them(text, equations):
  assert sets.equations(text) == equations


def test_long_texts_of_digits_take_no_time():
  assert sets.equations("1" * 300_000) == ()
  assert sets.normalised("1 " * 100_000)


def _words(start, end, letter="w"):
  """A text of words that are all different, made of letters alone."""
  to_letters = str.maketrans("0123456789", "abcdefghij")
  return " ".join(f"{letter}{i}".translate(to_letters) for i in range(start, end))


def test_each_rule_of_decontamination_and_what_it_leaves_alone():
  evaluation = {
    "long": _words(0, 30),
    "short": "What is $2 + 2$?",
    "template": "Ann has 5 pears and eats 2. How many are left?",
  }
  candidates = {
    "same": _words(0, 30).upper() + ".",
    "contains": f"so {_words(0, 28)} end",
    "shares": f"{_words(0, 14)} {_words(0, 30, letter='v')}",
    "short": "what is 2+2",
    "other short": "What is $2 + 3$?",
    "template": "Ann has 7 pears and eats 3. How many are left?",
  }
  contamination = decontaminate.Index(evaluation).search(candidates)
  assert {hit.candidate: hit.rule for hit in contamination.hits} == {
    "same": "exact",
    "contains": "contained",
    "short": "exact",
  }
  templates = [hit.candidate for hit in contamination.templates]
  assert templates == ["other short", "template"]
  assert contamination.report["clean"] == 3
  assert contamination.report["removed"] == {"exact": 2, "contained": 1, "short": 0}


def test_decontamination_takes_few_problems_of_math(shared_data):
  texts = {}
  for split in ("train", "test"):
    rows = files.read_jsonl(shared_data / f"math/{split}.jsonl")
    texts[split] = {row["unique_id"]: row["problem"] for row in rows}
  index = decontaminate.Index(texts["test"])
  report = index.search(texts["train"]).report
  assert report["clean"] > 0.97 * len(texts["train"])
  assert report["clean"] + sum(report["removed"].values()) == 7500


def test_numbers_stay_what_they_are_when_texts_are_normalised():
  index = decontaminate.Index({"e": r"Compute $\tan 22.5^\circ.$", "thousand": "Add 1,000 and 2."})
  assert index.match(r"Compute $\tan 225^\circ$.") is None
  assert index.match(r"compute \tan 22.5^\circ") == ("e", "exact")
  assert index.match("Add 1000 and 2") == ("thousand", "exact")


def test_short_problems_that_differ_in_a_sign_are_two_problems():
  evaluation = {"sum": "What is (3 + 4)?", "hyphen": "A well-known shop has 3 apples"}
  index = decontaminate.Index(evaluation)
  assert index.match("What is 3 - 4?") is None
  assert index.match("what is 3 + 4") == ("sum", "short")
  assert index.match("A well known shop has 3 apples") == ("hyphen", "short")


def test_a_file_of_traces_is_labelled_and_what_was_written_can_be_judged_again(tmp_path):
  traces = tmp_path / "t.jsonl"
  problems = tmp_path / "p.jsonl"
  out = tmp_path / "out"
  files.write_jsonl(
    traces,
    [
      {"problem_id": "a", "text": r"so \boxed{\frac{1}{2}}", "gold": "0.5"},
      {"problem_id": "a", "text": r"\boxed{3}"},
      {"problem_id": "a", "text": "?"},
      # Too large for a float: this one stopped the whole file.
      {"problem_id": "a", "text": r"\boxed{10^{400}}", "gold": r"\sqrt{2}"},
    ],
  )
  files.write_jsonl(problems, [{"id": "a", "question": "q", "answer": "1/2"}])
  arguments = ["verify", "--traces", str(traces), "--mode", "boxed", "--out", str(out)]
  assert __main__.main(arguments) == 1, "a gold answer is missing"
  assert __main__.main([*arguments, "--problems", str(problems)]) == 0

  report = json.loads((out / "report.json").read_text())
  counts = [report[name] for name in ("equal", "different", "undecided")]
  assert counts == [1, 2, 1]
  assert report["reasons"] == {"no-answer": 1}
  rows = list(files.read_jsonl(out / "verdicts.jsonl"))
  values = [row["verdict"]["value"] for row in rows]
  assert values == ["equal", "different", "undecided", "different"]
  assert rows[0]["answer"] == r"\frac{1}{2}"
  again = label.label(out / "verdicts.jsonl", tmp_path / "again", "boxed")
  assert again["equal"] == 1


def test_a_file_of_problems_is_cleaned_from_the_command_line(tmp_path):
  train = tmp_path / "train.jsonl"
  test = tmp_path / "test.jsonl"
  out = tmp_path / "clean"
  files.write_jsonl(train, [{"question": "What is 2 + 2?"}, {"question": "Another one altogether"}])
  files.write_jsonl(test, [{"problem": "What is $2+2$"}])
  arguments = ["--candidates", str(train), "--against", str(test), "--out", str(out)]
  assert __main__.main(["decontaminate", *arguments]) == 0
  questions = [row["question"] for row in files.read_jsonl(out / "clean.jsonl")]
  assert questions == ["Another one altogether"]
