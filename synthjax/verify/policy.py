"""What counts as equal, beyond mathematics: switches by name, each with a row in docs/verify.md."""

import dataclasses

LONGEST = 256  # characters of an answer; longer ones are `too-long` before anything reads them


@dataclasses.dataclass(frozen=True)
class EqualityPolicy:
  """Where the verifier differs from math-verify 0.9.0. All switches are on in `strict`."""

  name: str
  # Answers are read by our own rules; off: math-verify alone, and no other switch has an effect.
  structure: bool = True
  # Units are the same where both answers have one: 12 cm is not 12 m; off: units are ignored.
  units: bool = True
  percent: bool = True  # a percent sign is a unit: 10 % is 10 and not 0.1; off: it is either
  names: bool = True  # of assignments are the same: x = 5 is not y = 5; off: they are ignored
  # The answer to a plain number is a plain number: 2 + 4 is not 6; off: by value.
  unevaluated: bool = True
  # What still has to be solved is no answer: 5 = 3 is not 3; off: the last side is the answer.
  equation: bool = True
  # A decimal is what it rounds or cuts at six or more places; off: both are rounded to six.
  rounding: bool = True
  subscript: bool = True  # subscripted numerals are strings: 52_8 is not 52; off: bases are ignored
  ellipsis: bool = True  # an answer with dots leaves something unsaid: no; off: dots are ignored
  tuples: bool = True  # a tuple is not a set; off: their brackets and the order are ignored
  # An open end is not a closed one, and 1 < x < 2 is (1, 2); off: only the ends' values count.
  intervals: bool = True
  digits: bool = True  # a yes of sympy's holds at 50 digits at random values, or is exact


STRICT = EqualityPolicy("strict")  # rewards and accuracies; the default
# Numbers comparable with lm-evaluation-harness, which takes math-verify's word.
LM_EVAL = EqualityPolicy("lm_eval", structure=False)
POLICIES = {policy.name: policy for policy in (STRICT, LM_EVAL)}
