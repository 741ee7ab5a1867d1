"""Exact values of answers that are one number, in any of the ways in which numbers are written."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from synthjax.verify import units

_GREATEST_EXPONENT = 400  # of 10^n and 1e n; larger ones are not expanded


class Number(NamedTuple):
  """An exact value, and the number of decimal places it was written with (-1: no decimal point)."""

  value: Fraction
  places: int = -1


_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
"""
SPELLED = {word: Fraction(n) for n, word in enumerate(_WORDS.split())}
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_SIGN = r"(?P<sign>[-+]?)\s*"
_PLAIN = re.compile(rf"{_SIGN}(?P<digits>{_DIGITS})")
_REPEATING = re.compile(
  rf"{_SIGN}(?P<whole>\d+)\.(?P<fixed>\d*)\\overline\s*\{{?(?P<repeated>\d+)\}}?"
)
_EXPONENT = r"\{?(?P<power>[-+]?\d{1,3})\}?"
_SCIENTIFIC = re.compile(
  rf"{_SIGN}(?P<digits>{_DIGITS})\s*(?:[eE]|(?:\*|x)\s*10\s*\^)\s*{_EXPONENT}"
)
_POWER = re.compile(rf"{_SIGN}10\s*\^\s*{_EXPONENT}")
# A part of \frac: in braces, or one digit without them.
_PART = r"(?:\{{\s*(?P<{0}1>[-+]?(?:{1}))\s*\}}|(?P<{0}2>\d))"
_FRACTION = re.compile(
  rf"{_SIGN}(?:(?P<whole>\d+)\s*)?\\frac\s*{_PART.format('top', _DIGITS)}"
  rf"\s*{_PART.format('bottom', _DIGITS)}"
)
_SLASH = re.compile(
  rf"{_SIGN}(?:(?P<whole>\d+)\s+)?(?P<top1>{_DIGITS})\s*/\s*(?P<bottom1>[-+]?(?:{_DIGITS}))"
)
_SCALED = re.compile(
  rf"(?P<number>.*?[\d}}])\s*(?:\\word\s+)?(?P<scale>{'|'.join(units.SCALES)})", re.IGNORECASE
)
_ROUND = re.compile(r"\(([^()]*)\)|\{([^{}]*)\}")


def read(text: str) -> Number | None:
  """A number: decimal, scientific, a fraction, mixed, spelled, or with a scale like `million`."""
  if inner := _ROUND.fullmatch(text):
    content = (inner[1] or inner[2] or "").strip()
    if "," in content:
      return None
    return read(content)
  for pattern, value_of in _READERS:
    if match := pattern.fullmatch(text):
      return _signed(text, match, value_of)
  if scaled := _SCALED.fullmatch(text):
    number = read(scaled["number"])
    if number is None:
      return None
    return Number(number.value * units.SCALES[scaled["scale"].lower()])
  word = text.replace(r"\word", " ").strip().lower()
  if word in SPELLED:
    return Number(SPELLED[word])
  return None


def _signed(text: str, match: re.Match, value_of: Callable[[re.Match], Fraction]) -> Number | None:
  try:
    value = value_of(match)
  except ArithmeticError:
    return None
  if match["sign"] == "-":
    value = -value
  if match.re is _PLAIN:
    return Number(value, _places(text))
  return Number(value)


def _places(text: str) -> int:
  _, point, places = text.partition(".")
  if point:
    return len(places)
  return -1


def _fraction_of(digits: str) -> Fraction:
  return Fraction(digits.replace(",", ""))


def _decimal(match) -> Fraction:
  return _fraction_of(match["digits"])


def _power_of_ten(match) -> Fraction:
  power = int(match["power"])
  if abs(power) > _GREATEST_EXPONENT:
    raise ArithmeticError  # left to the symbolic comparison
  return Fraction(10) ** power


def _scientific(match) -> Fraction:
  return _decimal(match) * _power_of_ten(match)


def _repeating(match) -> Fraction:
  fixed = match["fixed"]
  repeated = match["repeated"]
  period = Fraction(int(repeated), 10 ** len(repeated) - 1)
  tail = period / 10 ** len(fixed)
  return Fraction(f"{match['whole']}.{fixed or 0}") + tail


def _fraction(match) -> Fraction:
  groups = match.groupdict()
  top = _fraction_of(groups["top1"] or groups["top2"])
  bottom = _fraction_of(groups["bottom1"] or groups["bottom2"])
  is_proper = 0 <= top < abs(bottom) and bottom > 0
  if match["whole"] and not is_proper:
    raise ArithmeticError  # 3\frac{5}{2} is a product
  return int(match["whole"] or 0) + top / bottom


def _slash(match) -> Fraction:
  top = _fraction_of(match["top1"])
  bottom = _fraction_of(match["bottom1"])
  return int(match["whole"] or 0) + top / bottom


# The first pattern that fits the whole text decides.
_READERS = (
  (_PLAIN, _decimal),
  (_FRACTION, _fraction),
  (_SLASH, _slash),
  (_SCIENTIFIC, _scientific),
  (_POWER, _power_of_ten),
  (_REPEATING, _repeating),
)
