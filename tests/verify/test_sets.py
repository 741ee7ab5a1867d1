import json

import pytest

from synthjax import files
from synthjax.records import Trace, Verdict
from synthjax.verify import decontaminate, label, sets

RIGHT, WRONG = Verdict("equal"), Verdict("different")


def _traces(*texts, problem="p"):
  return [Trace(problem, text) for text in texts]


def test_traces_that_are_the_same_stay_once_and_every_rule_is_counted():
  long = "first we take the number of apples and then we add the number of pears that she bought on monday "
  traces = _traces(
    "2 + 3 = 5 so five",
    "2 + 3  =  5 SO five",
    "I say 2+3=5.",
    "3 + 2 = 5",
    long + "at noon",
    long + "at night",
    "no idea",
  )
  found = sets.build(traces, [RIGHT] * 6 + [Verdict("undecided", "no-answer")])
  assert [t.text for t in found.positive] == ["2 + 3 = 5 so five", "3 + 2 = 5", long + "at noon"]
  assert found.report["removed"] == {
    "same text: right": 1,
    "same equations: right": 1,
    "near duplicate: right": 1,
    "undecided: no-answer": 1,
  }
  assert found.report["removed_ids"]["near duplicate: right"] == ["p:5"]


def test_right_and_wrong_traces_and_other_problems_are_sets_of_their_own():
  traces = [*_traces("1 = 1", "1 = 1"), *_traces("1 = 1", problem="q")]
  found = sets.build(traces, [RIGHT, WRONG, RIGHT])
  assert (len(found.positive), len(found.negative), found.report["removed"]) == (2, 1, {})


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
  assert sets.equations("1" * 300_000) == () and sets.normalised("1 " * 100_000)


def test_each_rule_of_decontamination_and_what_it_leaves_alone():
  words = [f"w{i}" for i in range(40)]
  joined = lambda ws: " ".join(
    "".join(c if c.isalpha() else "abcdefghij"[int(c)] for c in w) for w in ws
  )
  evaluation = {
    "long": joined(words[:30]),
    "short": "What is $2 + 2$?",
    "template": "Ann has 5 pears and eats 2. How many are left?",
  }
  index = decontaminate.Index(evaluation)
  candidates = {
    "same": joined(words[:30]).upper() + ".",
    "contains": "so " + joined(words[:28]) + " end",
    "shares": joined(words[:14]) + " " + joined([f"v{i}" for i in range(30)]),
    "short": "what is 2+2",
    "other short": "What is $2 + 3$?",
    "template": "Ann has 7 pears and eats 3. How many are left?",
  }
  found = index.search(candidates)
  assert {hit.candidate: hit.rule for hit in found.hits} == {
    "same": "exact",
    "contains": "contained",
    "short": "exact",
  }
  assert [hit.candidate for hit in found.templates] == ["other short", "template"]
  assert found.report["clean"] == 3 and found.report["removed"] == {
    "exact": 2,
    "contained": 1,
    "short": 0,
  }


def test_decontamination_takes_few_problems_of_math(shared_data):
  texts = {
    split: {
      row["unique_id"]: row["problem"]
      for row in files.read_jsonl(shared_data / f"math/{split}.jsonl")
    }
    for split in ("train", "test")
  }
  index = decontaminate.Index(texts["test"])
  report = index.search(texts["train"]).report
  assert (
    report["clean"] > 0.97 * len(texts["train"])
    and report["clean"] + sum(report["removed"].values()) == 7500
  )


def test_numbers_stay_what_they_are_when_texts_are_normalised():
  index = decontaminate.Index({"e": r"Compute $\tan 22.5^\circ.$", "thousand": "Add 1,000 and 2."})
  assert index.match(r"Compute $\tan 225^\circ$.") is None
  assert index.match(r"compute \tan 22.5^\circ") == ("e", "exact")
  assert index.match("Add 1000 and 2") == ("thousand", "exact")


def test_short_problems_that_differ_in_a_sign_are_two_problems():
  index = decontaminate.Index(
    {"sum": "What is (3 + 4)?", "hyphen": "A well-known shop has 3 apples"}
  )
  assert index.match("What is 3 - 4?") is None and index.match("what is 3 + 4") == ("sum", "short")
  assert index.match("A well known shop has 3 apples") == ("hyphen", "short")


def test_files_of_traces_are_labelled_and_files_of_problems_cleaned(tmp_path):
  from synthjax import __main__

  files.write_jsonl(
    tmp_path / "t.jsonl",
    [
      {"problem_id": "a", "text": r"so \boxed{\frac{1}{2}}", "gold": "0.5"},
      {"problem_id": "a", "text": r"\boxed{3}"},
      {"problem_id": "a", "text": "?"},
      # Too large for a float: this one stopped the whole file.
      {"problem_id": "a", "text": r"\boxed{10^{400}}", "gold": r"\sqrt{2}"},
    ],
  )
  files.write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "question": "q", "answer": "1/2"}])
  arguments = [
    "verify",
    "--traces",
    str(tmp_path / "t.jsonl"),
    "--mode",
    "boxed",
    "--out",
    str(tmp_path / "out"),
  ]
  assert __main__.main(arguments) == 1, "a gold answer is missing"
  assert __main__.main([*arguments, "--problems", str(tmp_path / "p.jsonl")]) == 0
  report = json.loads((tmp_path / "out/report.json").read_text())
  assert (report["equal"], report["different"], report["undecided"], report["reasons"]) == (
    1,
    2,
    1,
    {"no-answer": 1},
  )
  verdicts = list(files.read_jsonl(tmp_path / "out/verdicts.jsonl"))
  assert [row["verdict"]["value"] for row in verdicts] == [
    "equal",
    "different",
    "undecided",
    "different",
  ] and verdicts[0]["answer"] == r"\frac{1}{2}"
  # What it wrote can be judged again.
  assert label.label(tmp_path / "out/verdicts.jsonl", tmp_path / "again", "boxed")["equal"] == 1
  files.write_jsonl(
    tmp_path / "train.jsonl",
    [{"question": "What is 2 + 2?"}, {"question": "Another one altogether"}],
  )
  files.write_jsonl(tmp_path / "test.jsonl", [{"problem": "What is $2+2$"}])
  assert (
    __main__.main(
      [
        "decontaminate",
        "--candidates",
        str(tmp_path / "train.jsonl"),
        "--against",
        str(tmp_path / "test.jsonl"),
        "--out",
        str(tmp_path / "clean"),
      ]
    )
    == 0
  )
  assert [row["question"] for row in files.read_jsonl(tmp_path / "clean/clean.jsonl")] == [
    "Another one altogether"
  ]
