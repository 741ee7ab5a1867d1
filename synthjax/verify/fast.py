"""Equality of plain answers, exact and without sympy: numbers, words, and tuples, intervals, sets and lists of them.

Both answers are brought to a canonical form; closed forms with roots, pi or variables to a value, by which they can only differ. Where
one has none, or the forms leave room for doubt (percent against plain, a decimal near an exact value, anything symbolic), `compare`
returns None and the symbolic comparison decides.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from synthjax.verify import numeric

_GREATEST_EXPONENT = 400  # of 10^n and 1e n; larger ones are not expanded
_NEAR = Fraction(1, 10**5)  # distance, absolute or relative, within which a decimal may stand for an exact value


class Number(NamedTuple):
  """An exact value, and how it was written."""

  value: Fraction
  decimal: bool = False  # has a decimal point: may be rounded
  percent: bool = False
  unit: str = ""  # trailing words, lower case


class Word(NamedTuple):
  """A single letter, or words that were written as text."""

  text: str


class Group(NamedTuple):
  """Elements between brackets: `(1,2)` and `[1,2)` in order, `{1,2}` and a bare `1,2` in any."""

  brackets: str
  items: tuple


class Value(NamedTuple):
  """A closed form with roots, pi or variables, in floating point: good for telling different ones apart."""

  value: float


Form = Number | Word | Group | Value


def compare(gold: str, prediction: str) -> bool | None:
  """True or False where that is certain, else None."""
  one, other = clean(gold), clean(prediction)
  if _FORMULA_OF_WORDS.search(other) and isinstance(form(one), Number):
    return False
  if _squeeze(one) == _squeeze(other):
    return True if _squeeze(one) else None
  return _same(form(one), form(other))


@functools.lru_cache(1 << 16)
def form(text: str) -> Form | None:
  """The canonical form of a cleaned answer, or None where it has none."""
  if assigned := _ASSIGNMENT.match(text):
    return form(text[assigned.end():])
  if (number := _number(text)) is not None:
    return number
  if option := _OPTION.fullmatch(text):
    return Word(option[1])
  if _WORDS.fullmatch(text):
    word = _word(text)
    if word is not None:
      return word
  group = _group(text)
  if group is not None:
    return group
  value = numeric.value(text)
  return None if value is None else Value(value)


_CLEANED = [(re.compile(pattern), new) for pattern, new in (
  (r"\\[dtc]frac", r"\\frac"),
  (r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle|limits)(?![A-Za-z])", ""),
  (r"(?<=\d),?(?:\\[,!;:]|\{,\}|\\ )+(?=\d{3}(?!\d))", ","),  # 1\,000, 1,\!000 and 1{,}000
  (r"\\[,!;:>]|\\ |~|\\q?quad", " "),
  (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|\\textdegree", ""),
  (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|textnormal|operatorname)\s*\{([^{}]*)\}", r" \\word \1 "),
  (r"\\[$%#&]", lambda m: m[0][1]),
  (r"\\(?:times|cdot)(?![A-Za-z])", "*"),
  (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi"),
  (r"(?<![\\A-Za-z])(?:inf|infinity|infty)(?![A-Za-z])", r"\\infty"),
  (r"_\{(\w+)\}", r"_\1"),
  (r"\^\{(\w)\}", r"^\1"),
)]
_CHARACTERS = str.maketrans({
  **dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}\N{HYPHEN}\N{NON-BREAKING HYPHEN}", "-"),
  **dict.fromkeys("\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}", " "),
  **dict.fromkeys("\N{POUND SIGN}\N{EURO SIGN}", "$"),
  "\N{FULLWIDTH COMMA}": ",", "\N{DEGREE SIGN}": "", "\N{MULTIPLICATION SIGN}": "*", "\N{GREEK SMALL LETTER PI}": r"\pi",
  "\N{INFINITY}": r"\infty"})
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


@functools.lru_cache(1 << 16)
def clean(text: str) -> str:
  """The answer without what carries no meaning: delimiters, spacing commands, styles, degrees, currency, a final full stop."""
  text = text.strip()
  if text.isdigit() and text.isascii():
    return text
  text = text.translate(_CHARACTERS)
  for left, right in _DELIMITERS:
    if text.startswith(left) and text.endswith(right) and len(text) >= len(left) + len(right):
      text = text[len(left):-len(right)].strip()
  if "\\" in text or "{" in text or "i" in text:
    for pattern, new in _CLEANED:
      text = pattern.sub(new, text)
  text = text.replace("$", "").strip()
  # A full stop ends a sentence, and 7. is 7; dots that go on stand for something.
  return text[:-1].strip() if text.endswith((".", ",", ";")) and not text.endswith("..") else text


def _squeeze(text: str) -> str:
  """Without spaces and text marks, to be compared as strings; a space between digits has a meaning (1 1/2)."""
  return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text.replace(r"\word", ""))


_SPELLED = {word: Fraction(n) for n, word in enumerate((
  "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
  "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"))}
_ASSIGNMENT = re.compile(r"\\?[A-Za-z]+(?:_\w)?(?:\([A-Za-z]\))?\s*=\s*(?=[^=])")
_WORDS = re.compile(r"(?:\\word|[A-Za-z '.\-])+")  # one character a turn: runs inside runs would take exponential time
_OPTION = re.compile(r"(?:\\word)?\s*\(\s*(?:\\word)?\s*([A-Za-z])\s*\)\s*")  # (C), of a multiple choice
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_PLAIN = re.compile(rf"(?P<sign>[-+]?)\s*(?P<digits>{_DIGITS})")
_SCIENTIFIC = re.compile(rf"(?P<sign>[-+]?)\s*(?P<digits>{_DIGITS})\s*(?:[eE]|(?:\*|x)\s*10\s*\^)\s*\{{?(?P<power>[-+]?\d{{1,3}})\}}?")
_POWER = re.compile(r"(?P<sign>[-+]?)10\s*\^\s*\{?(?P<power>[-+]?\d{1,3})\}?")
_PART = r"\{{\s*(?P<{0}{1}>[-+]?\d+)\s*\}}|(?P<{0}{2}>\d)"
_FRACTION = re.compile(
  r"(?P<sign>[-+]?)\s*(?:(?P<whole>\d+)\s*)?\\frac\s*(?:" + _PART.format("n", 1, 2) + r")\s*(?:" + _PART.format("d", 1, 2) + ")")
_SLASH = re.compile(r"(?P<sign>[-+]?)\s*(?:(?P<whole>\d+)\s+)?(?P<top>\d+)\s*/\s*(?P<bottom>\d+)")
_UNIT = re.compile(r"\s*(?P<unit>(?:\\word\s+[^\\]*|\s[A-Za-z][A-Za-z.]+(?:[\s/-]+[A-Za-z.]+)*)(?:\s*\^\s*\{?[23]\}?)?)\s*")
# 10+John's age: a formula in which words stand for quantities is not a number, and costs sympy half a second.
_QUANTITY = r"(?!sqrt|sin|cos|tan|log|exp)[A-Z]?[a-z]{3,}"
_FORMULA_OF_WORDS = re.compile(rf"[\d)]\s*[-+*/]\s*{_QUANTITY}|(?<![\\A-Za-z]){_QUANTITY}\s*[+*/]\s*[\d(]")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"(?:\\word)?\s*({'|'.join(_SCALES)})\s*", re.IGNORECASE)
# Words after a number that make it another one.
_NOT_UNITS = re.compile(r"\b(?:pi|sqrt|sin|cos|tan|log|ln|million|billion|trillion|thousand|hundred|dozen|half|or|and|to|mod|squared|cubed|"
                        r"factorial|times|plus|minus|over|percent)\b", re.IGNORECASE)


def _number(text: str) -> Number | None:
  """A plain number, with percent sign or unit, or None."""
  if text.isdigit() and text.isascii():
    return Number(Fraction(int(text)))
  if text.startswith("(") and text.endswith(")") and "," not in text:
    return _number(text[1:-1].strip())
  for pattern, value in _READERS:
    if match := pattern.match(text):
      rest = text[match.end():]
      if rest and rest[0] in "^_!*/(=+-\\.,:{[|e" and not rest.startswith("\\word"):
        continue
      try:
        exact = value(match)
      except ZeroDivisionError:
        return None
      exact = -exact if match["sign"] == "-" else exact
      return _with_rest(exact, "." in match[0], rest)
  return None


def _with_rest(value: Fraction, decimal: bool, rest: str) -> Number | None:
  if not rest.strip():
    return Number(value, decimal)
  if rest.strip() in ("%", r"\word percent", "percent"):
    return Number(value, decimal, percent=True)
  if scaled := _SCALE.fullmatch(rest):
    return Number(value * _SCALES[scaled[1].lower()], decimal)
  unit = _UNIT.fullmatch(rest)
  if unit is None or _NOT_UNITS.search(unit["unit"]):
    return None
  words = re.sub(r"\\word|[.\s]", "", unit["unit"]).lower()
  return Number(value, decimal, unit=words)


def _digits(match) -> Fraction:
  return Fraction(match["digits"].replace(",", ""))


def _power_of_ten(match) -> Fraction:
  power = int(match["power"])
  if abs(power) > _GREATEST_EXPONENT:
    raise ZeroDivisionError  # left to the symbolic comparison
  return Fraction(10) ** power


def _fraction(match) -> Fraction:
  top, bottom = int(match["n1"] or match["n2"]), int(match["d1"] or match["d2"])
  if match["whole"] and not 0 <= top < abs(bottom):
    raise ZeroDivisionError  # 3\frac{5}{2} is a product
  return int(match["whole"] or 0) + Fraction(top, bottom)


_READERS = (
  (_SCIENTIFIC, lambda m: _digits(m) * _power_of_ten(m)),
  (_POWER, _power_of_ten),
  (_SLASH, lambda m: int(m["whole"] or 0) + Fraction(int(m["top"]), int(m["bottom"]))),
  (_FRACTION, _fraction),
  (_PLAIN, _digits),
)


def _word(text: str) -> Number | Word | None:
  as_text = r"\word" in text
  words = " ".join(text.replace(r"\word", " ").replace(".", " ").split())
  if words.lower() in _SPELLED:
    return Number(_SPELLED[words.lower()])
  if len(words) == 1:
    return Word(words)
  # Letters without spaces that were not set as text may be a product of variables.
  return Word(words.lower()) if len(words) > 1 and (as_text or " " in words or len(words) > 3) else None


def _group(text: str) -> Group | None:
  opening, closing = text[:1] + text[1:2] * (text[:1] == "\\"), text[-1:]
  if opening == r"\{" and text.endswith(r"\}"):
    brackets, inner = "{}", text[2:-2]
  elif opening in "([" and opening and closing in ")]":
    brackets, inner = opening + closing, text[1:-1]
  else:
    brackets, inner = "", text
  pieces = _split(inner)
  if pieces is None or (len(pieces) < 2 and brackets != "{}") or (brackets and _PLAIN.fullmatch(inner.strip())):
    return None
  items = [form(piece) for piece in pieces]
  return None if any(item is None for item in items) else Group(brackets, tuple(items))


def _split(text: str) -> list[str] | None:
  """At the commas outside brackets; None where brackets do not match or a piece is empty."""
  pieces, depth, start = [], 0, 0
  for index, character in enumerate(text):
    depth += (character in "([{") - (character in ")]}")
    if depth < 0:
      return None
    if character == "," and depth == 0:
      pieces.append(text[start:index])
      start = index + 1
  pieces = [piece.strip() for piece in [*pieces, text[start:]]]
  return pieces if depth == 0 and all(pieces) else None


def _same(gold: Form | None, found: Form | None) -> bool | None:
  if gold is None or found is None:
    return None
  if isinstance(gold, Number) and isinstance(found, Number):
    return _same_number(gold, found)
  if isinstance(gold, Group) and isinstance(found, Group):
    return _same_group(gold, found)
  if isinstance(gold, Word) and isinstance(found, Word):
    return _same_word(gold.text, found.text)
  if isinstance(gold, Number | Value) and isinstance(found, Number | Value):
    percent = isinstance(gold, Number) and gold.percent or isinstance(found, Number) and found.percent
    return None if percent or not numeric.apart(float(gold.value), float(found.value)) else False
  if {type(gold), type(found)} in ({Number, Group}, {Value, Group}):
    return _scalar_and_group(gold, found)
  if {type(gold), type(found)} == {Number, Word}:
    # e, i and pi are numbers; every other letter or word is none.
    return None if any(isinstance(word, Word) and len(word.text) <= 2 for word in (gold, found)) else False
  return None


def _same_number(gold: Number, found: Number) -> bool | None:
  if gold.percent != found.percent:
    return None
  if gold.unit and found.unit and gold.unit.rstrip("s") != found.unit.rstrip("s"):
    return False if {gold.unit, found.unit} == {"am", "pm"} else None
  if gold.value == found.value:
    return True
  near = abs(gold.value - found.value) <= _NEAR * max(abs(gold.value), abs(found.value), Fraction(1))
  return None if near and gold.decimal | found.decimal else False


def _scalar_and_group(gold: Form, found: Form) -> bool | None:
  """A scalar is no tuple; but a set of one may be its element, and `1, 000` a number."""
  group = gold if isinstance(gold, Group) else found
  assert isinstance(group, Group)
  thousands = all(isinstance(item, Number) and item.value < 1000 for item in group.items[1:])
  return None if len(set(group.items)) < 2 or (group.brackets == "" and thousands) else False


def _same_word(gold: str, found: str) -> bool | None:
  if gold == found:
    return True
  return False if sorted(gold.lower().replace(" ", "")) != sorted(found.lower().replace(" ", "")) else None


def _same_group(gold: Group, found: Group) -> bool | None:
  if gold.brackets != found.brackets:
    # An open end is not a closed one; what other differences mean is for the policy to say.
    return False if gold.brackets and found.brackets and "{}" not in (gold.brackets, found.brackets) else None
  if gold.brackets in ("{}", ""):
    return _same_multiset(list(gold.items), list(found.items))
  if len(gold.items) != len(found.items):
    return False
  return _all([_same(a, b) for a, b in zip(gold.items, found.items)])


def _same_multiset(gold: list, found: list) -> bool | None:
  """Certain only where every pair of elements is: then elements are matched greedily, equality being transitive."""
  verdicts = [[_same(a, b) for b in found] for a in gold]
  if any(verdict is None for row in verdicts for verdict in row):
    return None
  if len(gold) != len(found):
    return None if len(set(gold)) == len(set(found)) else False  # repeated elements: let sympy say
  free = set(range(len(found)))
  for row in verdicts:
    match = next((j for j in free if row[j]), None)
    if match is None:
      return False
    free.remove(match)
  return True


def _all(verdicts: list[bool | None]) -> bool | None:
  if False in verdicts:
    return False
  return None if None in verdicts else True
