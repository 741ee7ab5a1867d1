import pytest

from synthjax.verify import extract, numbers


@pytest.mark.parametrize(("mode", "text", "answer"), [
  ("hash", "so\n#### 1,200\nmore", "1,200"), ("hash", "no marker", None), ("hash", "####  ", None),
  ("final_line", "3 + 4 = 7 ; Answer: 7", "7"),
  ("boxed", r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"), ("boxed", r"\boxed{1} \boxed{2", None),
])
def test_extraction_follows_the_mode(mode, text, answer):
  assert extract.extract(text, mode) == answer


@pytest.mark.parametrize(("gold", "found", "value"), [
  ("1200", "1,200", "equal"), ("5", "$5.00", "equal"), ("-3", "\N{MINUS SIGN}3", "equal"), ("7", "7.", "equal"), ("7", "8", "different"),
  ("7", "seven", "undecided"), ("x", "7", "undecided"), ("7", "1" * 300, "undecided"), ("7", None, "undecided"),
  ("7", "__import__('os')", "undecided"), ("12", "1,2", "undecided"),
])
def test_numbers_are_compared_exactly_and_the_rest_is_undecided(gold, found, value):
  assert numbers.compare(gold, found).value == value


def test_real_gsm8k_answers_equal_themselves(shared_data):
  from synthjax import files

  golds = [extract.extract(row["answer"], "hash") for row in files.read_jsonl(shared_data / "gsm8k/test.jsonl")]
  assert len(golds) == 1319
  assert all(numbers.compare(g, g).value == "equal" for g in golds)
