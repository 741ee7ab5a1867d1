import time

import pytest

from synthjax.verify import extract


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
