"""Equality of plain numbers, exact: the fast path that GSM8K and the embedded world need."""

import re
from fractions import Fraction

from synthjax.records import Verdict

_NUMBER = re.compile(r"-?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d*)?|-?\.\d+")
_LONGEST = 256  # characters; longer answers are not looked at


def compare(gold: str, prediction: str | None) -> Verdict:
  """`equal` or `different` for plain numbers ("1,200", "$5.00", "-3", "7."), `undecided` with the reason for everything else."""
  if prediction is None:
    return Verdict("undecided", "no-answer")
  if max(len(gold), len(prediction)) > _LONGEST:
    return Verdict("undecided", "too-long")
  wanted, found = number(gold), number(prediction)
  if wanted is None:
    return Verdict("undecided", "unparsed-gold")
  if found is None:
    return Verdict("undecided", "unparsed-prediction")
  return Verdict("equal" if wanted == found else "different")


def number(text: str) -> Fraction | None:
  """The exact value of a plain decimal number, or None."""
  text = text.strip().replace("\N{MINUS SIGN}", "-").strip("$").strip()
  text = re.sub(r"^-\s*\$", "-", text)
  text = text.removesuffix(".") if re.fullmatch(r".*\d\.", text) else text
  return Fraction(text.replace(",", "")) if _NUMBER.fullmatch(text) else None
