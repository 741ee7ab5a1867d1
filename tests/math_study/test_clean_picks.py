from synthjax.credit.traces import SampledTrace
from synthjax.math_study import clean_picks
from synthjax.records import Verdict
from synthjax.worlds import shop

QUESTION = "A shop has 11 apples . gets 2 . sells 5 . ?"
CLEAN, LEAP = "11 + 2 = 13 ; 13 - 5 = 8 ; Answer: 8", "11 + 2 - 5 = 8 ; Answer: 8"
LUCKY = "11 + 2 = 12 ; 12 - 5 = 8 ; Answer: 8"


def _drawn(name, text, value="equal"):
  return SampledTrace(name, text, ((1,),), Verdict(value))


def test_both_sides_get_as_many_traces_of_a_problem_and_none_has_a_wrong_line():
  assert "wrong" in shop.judge_steps(QUESTION, LUCKY)
  drawn = [_drawn("a", text) for text in (LUCKY, LEAP, CLEAN, CLEAN, LEAP)] + [
    _drawn("b", LEAP),
    _drawn("c", CLEAN),
  ]
  drawn += [_drawn("d", CLEAN), _drawn("d", LEAP, "different")]
  found = clean_picks.picks(dict.fromkeys("abcd", QUESTION), drawn, 4)
  assert [(d.problem_id, d.text) for d in found.clean] == [("a", CLEAN)]
  assert [(d.problem_id, d.text) for d in found.spurious] == [("a", LEAP)]
