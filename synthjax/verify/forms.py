"""What an answer is: a number, a quantity, words, a group, an assignment, a relation, a formula.

`form` reads a cleaned answer (`spelling.clean`); parts are cleaned texts again, read in their turn.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from synthjax.verify import expressions, numeric, spelling, units

_GREATEST_EXPONENT = 400  # of 10^n and 1e n; larger ones are not expanded


class Number(NamedTuple):
  """An exact value, and the number of decimal places it was written with (-1: no decimal point)."""

  value: Fraction
  places: int = -1


class Measured(NamedTuple):
  """Something with a unit, a percent sign or a currency."""

  body: str
  unit: str


class Word(NamedTuple):
  """A single letter, or words that were written as text."""

  text: str


class Group(NamedTuple):
  """Parts in brackets: `(1,2)`, `[1,2)`, `{1,2}`; "" is a bare `1,2`.

  `union`, `:` (a ratio) and `matrix 2x1` are groups too.
  """

  brackets: str
  items: tuple[str, ...]


class Assigned(NamedTuple):
  """`x = 5`, `f(x) = ...`, `x \\in ...`."""

  name: str
  body: str


class Relation(NamedTuple):
  """An equation, an inequality, or a chain of them."""

  sides: tuple[str, ...]
  signs: tuple[str, ...]


class Formula(NamedTuple):
  """An expression that `numeric` reads."""

  expression: expressions.Expression


class Phrase(NamedTuple):
  """Words that are not known to be a unit, with numbers: it may mean anything."""

  text: str


Form = Number | Measured | Word | Group | Assigned | Relation | Formula | Phrase


@functools.lru_cache(1 << 16)
def form(text: str) -> Form | None:
  """The form of a cleaned answer, or None where it has none."""
  if text.isdigit() and text.isascii():
    return Number(Fraction(int(text)))
  if not text or not spelling.is_balanced(text):
    return None
  for read in (
    _number,
    _measured_number,
    _list,
    _relation,
    _option,
    _bracketed,
    _matrix,
    _measured,
    _words,
    _formula,
    _phrase,
  ):
    found = read(text)
    if found is not None:
      return found
  return None


# Numbers.

_SPELLED = {
  word: Fraction(n)
  for n, word in enumerate(
    (
      "zero",
      "one",
      "two",
      "three",
      "four",
      "five",
      "six",
      "seven",
      "eight",
      "nine",
      "ten",
      "eleven",
      "twelve",
      "thirteen",
      "fourteen",
      "fifteen",
      "sixteen",
      "seventeen",
      "eighteen",
      "nineteen",
      "twenty",
    )
  )
}
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_SIGN = r"(?P<sign>[-+]?)\s*"
_PLAIN = re.compile(rf"{_SIGN}(?P<digits>{_DIGITS})")
_REPEATING = re.compile(
  rf"{_SIGN}(?P<whole>\d+)\.(?P<fixed>\d*)\\overline\s*\{{?(?P<repeated>\d+)\}}?"
)
_SCIENTIFIC = re.compile(
  rf"{_SIGN}(?P<digits>{_DIGITS})\s*(?:[eE]|(?:\*|x)\s*10\s*\^)\s*\{{?(?P<power>[-+]?\d{{1,3}})\}}?"
)
_POWER = re.compile(rf"{_SIGN}10\s*\^\s*\{{?(?P<power>[-+]?\d{{1,3}})\}}?")
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


def _number(text: str) -> Number | None:
  """A number: decimal, scientific, a fraction, mixed, spelled, or with a scale like `million`."""
  if inner := _ROUND.fullmatch(text):
    content = (inner[1] or inner[2] or "").strip()
    return None if "," in content else _number(content)
  for pattern, value in _READERS:
    if match := pattern.fullmatch(text):
      try:
        exact = value(match)
      except ArithmeticError:
        return None
      return Number(
        -exact if match["sign"] == "-" else exact, _places(text) if pattern is _PLAIN else -1
      )
  if scaled := _SCALED.fullmatch(text):
    found = _number(scaled["number"])
    return None if found is None else Number(found.value * units.SCALES[scaled["scale"].lower()])
  word = text.replace(r"\word", " ").strip().lower()
  return Number(_SPELLED[word]) if word in _SPELLED else None


def _places(text: str) -> int:
  whole, point, places = text.partition(".")
  return len(places) if point else -1


def _fraction_of(digits: str) -> Fraction:
  return Fraction(digits.replace(",", ""))


def _power_of_ten(match) -> Fraction:
  power = int(match["power"])
  if abs(power) > _GREATEST_EXPONENT:
    raise ArithmeticError  # left to the symbolic comparison
  return Fraction(10) ** power


def _repeating(match) -> Fraction:
  fixed, repeated = match["fixed"], match["repeated"]
  tail = Fraction(int(repeated), 10 ** len(repeated) - 1) / 10 ** len(fixed)
  return Fraction(f"{match['whole']}.{fixed or 0}") + tail


def _fraction(match) -> Fraction:
  groups = match.groupdict()
  top = _fraction_of(groups["top1"] or groups["top2"])
  bottom = _fraction_of(groups["bottom1"] or groups["bottom2"])
  if match["whole"] and not (0 <= top < abs(bottom) and bottom > 0):
    raise ArithmeticError  # 3\frac{5}{2} is a product
  return int(match["whole"] or 0) + top / bottom


def _slash(match) -> Fraction:
  return int(match["whole"] or 0) + _fraction_of(match["top1"]) / _fraction_of(match["bottom1"])


_READERS = (
  (_PLAIN, lambda match: _fraction_of(match["digits"])),
  (_FRACTION, _fraction),
  (_SLASH, _slash),
  (_SCIENTIFIC, lambda match: _fraction_of(match["digits"]) * _power_of_ten(match)),
  (_POWER, _power_of_ten),
  (_REPEATING, _repeating),
)


# Units.

_CURRENCIES = {"$": "dollar", "\N{POUND SIGN}": "pound", "\N{EURO SIGN}": "euro"}
_CURRENCY_BEFORE = re.compile(r"(?P<sign>[-+]?)\s*(?P<currency>[$\u00a3\u20ac])\s*(?P<body>.+)")
_DEGREE = re.compile(r"(?P<body>.*\S)\s*\\degree\s*(?:\\word)?\s*(?P<scale>[CF]?)")
_TAIL = re.compile(
  r"(?<![\\A-Za-z])(?P<words>(?:\\word|[A-Za-z.\-/]|\s)+)(?P<power>\^\s*\{?\d\}?)?$"
)
_UNFINISHED = ("+", "-", "*", "/", "^", "=", "(", ",", "<", ">", "_")


def _measured_number(text: str) -> Measured | None:
  found = _measured(text)
  return found if found is not None and _number(found.body) is not None else None


def _measured(text: str) -> Measured | None:
  """Something that ends with a unit of the known list, or has a percent sign or a currency."""
  if before := _CURRENCY_BEFORE.fullmatch(text):
    return _with_currency(before["sign"] + before["body"], _CURRENCIES[before["currency"]])
  sign, body = text[-1], text[:-1].strip()
  if sign == "%" or sign in _CURRENCIES:
    if not body or body[-1] == "%" or body[-1] in _CURRENCIES:
      return None
    return Measured(body, _CURRENCIES.get(sign, "percent"))
  if (
    (degree := _DEGREE.fullmatch(text))
    and r"\degree" not in degree["body"]
    and not _has_function(degree["body"])
  ):
    return Measured(
      degree["body"], {"C": "celsius", "F": "fahrenheit", "": "degree"}[degree["scale"]]
    )
  tail = _TAIL.search(text)
  return _split_unit(text, tail) if tail else None


_FUNCTION = re.compile(
  r"(?<![A-Za-z])(?:arc)?(?:sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt)(?![a-z]{2})"
)


def _has_function(text: str) -> bool:
  return _FUNCTION.search(text) is not None


def _split_unit(text: str, tail: re.Match) -> Measured | None:
  words, power = tail["words"], tail["power"] or ""
  for start in re.finditer(r"(?:\\word\s+)?(?<![A-Za-z.\-/])[A-Za-z]", words):
    body = text[: tail.start() + start.start()].strip()
    if not body or body.endswith(_UNFINISHED) or not _may_precede_unit(words[: start.start()]):
      continue
    as_text = r"\word" in words[: start.end()]
    unit = units.read(words[start.start() :].replace(r"\word", " ") + power, as_text)
    if unit is not None:
      return Measured(body, unit) if unit else None
  return None


def _may_precede_unit(words: str) -> bool:
  """Only scales, spelled numbers and variables: 12 square units squared are no units squared."""
  for word in words.replace(r"\word", " ").lower().split():
    if len(word) > 1 and word not in units.SCALES and word not in _SPELLED:
      return False
  return True


def _with_currency(body: str, currency: str) -> Measured:
  """`$5`, `$5 dollars`, `$5 per hour`."""
  if rate := re.fullmatch(
    r"(?P<body>.*[\d}])\s*(?:\\word\s+)?"
    r"(?P<rate>(?:per|an?|each)\s[a-z ]+|/\s*(?:\\word\s+)?[a-z]+)",
    body,
  ):
    unit = units.read(f"{currency} {rate['rate']}".replace(r"\word", " "))
    if unit:
      return Measured(rate["body"].strip(), unit)
  measured = _measured(body)
  if measured is not None and measured.unit == currency:
    return measured
  return Measured(body, currency)


# Lists, groups and relations.

_COMMA = re.compile(
  r"\s*(?:[,;]\s*(?:\\word\s+)?(?:and|or)(?![A-Za-z])|[,;]|"
  r"(?:\\word\s+)?(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*"
)
_RELATION = re.compile(r"\s*(?:\\leq|\\geq|\\neq|\\in(?![A-Za-z])|\\approx(?![A-Za-z])|=|<|>)\s*")
_CUP = re.compile(r"\s*\\cup(?![A-Za-z])\s*")
_COLON = re.compile(r"\s*:\s*")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_NAME = re.compile(
  r"(?:m?\s*\\angle\s*|\\triangle\s*|\\overline\s*|\\vec\s*)?(?:\\?[A-Za-z]+|\{[A-Za-z]+\})"
  r"(?:_\w|_\{\w+\})?'*(?:\([A-Za-z0-9, ]+\))?"
)
_SYMBOL = re.compile(r"\\?[A-Za-z](?:_\w)?|\\(?:theta|alpha|beta)")
_TEXT_NAME = re.compile(r"\\word\s+[A-Za-z ]+")
_OPTION = re.compile(
  r"(?:\\word)?\s*\(\s*(?:\\word)?\s*([A-Za-z])\s*\)\s*"
)  # (C), of a multiple choice
_ENVIRONMENT = re.compile(r"\\begin\{[pb]matrix\}(.*)\\end\{[pb]matrix\}", re.DOTALL)


def _list(text: str) -> Group | None:
  pieces = spelling.split(text, _COMMA)
  if pieces is None or len(pieces) < 2 or r"\begin" in text or _has_thousands(pieces):
    return _plus_minus(text)
  return Group("", tuple(spelling.clean(piece) for _, piece in pieces))


def _has_thousands(pieces: list[tuple[str, str]]) -> bool:
  """Whether a part is the end of a number: 1, 000."""
  return any(re.fullmatch(r"0\d\d", piece) for _, piece in pieces[1:])


def _plus_minus(text: str) -> Group | None:
  if len(_PLUS_MINUS.findall(text)) != 1 or "=" in text:
    return None
  before, after = _PLUS_MINUS.split(text)
  return Group("", (f"{before}+{after}".strip(), f"{before}-{after}".strip()))


def _relation(text: str) -> Assigned | Relation | None:
  pieces = spelling.split(text, _RELATION)
  if pieces is None or len(pieces) < 2:
    return None
  sides, signs = tuple(piece for _, piece in pieces), tuple(sign for sign, _ in pieces[1:])
  if (
    signs[0] in ("=", r"\in", r"\approx")
    and set(signs) <= {"=", r"\approx", r"\in"}
    and _is_name(sides[0])
    and _agree(sides[1:])
  ):
    return Assigned(_squeezed_name(sides[0]), sides[-1])
  if signs == ("=",) and _SYMBOL.fullmatch(sides[1]) and not _SYMBOL.fullmatch(sides[0]):
    return Assigned(_squeezed_name(sides[1]), sides[0])  # 5 = x
  return Relation(sides, signs)


def _is_name(text: str) -> bool:
  if _TEXT_NAME.fullmatch(text):
    return True
  return (
    _NAME.fullmatch(text) is not None
    and not _has_function(text)
    and r"\pi" not in text
    and r"\infty" not in text
  )


def _squeezed_name(text: str) -> str:
  return re.sub(r"[\s{}]|\\word", "", text)


def _agree(sides: tuple[str, ...]) -> bool:
  """Whether the sides of a chain, but for the name before it, have one value: x = 4/2 = 2."""
  if len(sides) == 1:
    return True
  last = expressions.parse(sides[-1])
  for side in sides[:-1]:
    other = expressions.parse(side)
    if last is None or other is None or numeric.same(other, last) is not True:
      return False
  return True


def _option(text: str) -> Word | None:
  found = _OPTION.fullmatch(text)
  return Word(found[1].upper()) if found else None


def _bracketed(text: str) -> Form | None:
  pieces = spelling.split(text, _CUP)
  if pieces is not None and len(pieces) > 1:
    return Group("union", tuple(piece for _, piece in pieces))
  pieces = spelling.split(text, _COLON)
  if pieces is not None and len(pieces) > 1:
    return Group(":", tuple(piece for _, piece in pieces))
  opening, closing = text[:1], text[-1:]
  if text.startswith(r"\{") and text.endswith(r"\}"):
    brackets, inner = "{}", text[2:-2].strip()
  elif opening in ("(", "[") and closing in (")", "]"):
    brackets, inner = opening + closing, text[1:-1].strip()
  else:
    return None
  if not _is_one_bracket(text):
    return None
  items = spelling.split(inner, _COMMA)
  if items is None or _has_thousands(items):
    return None
  if len(items) == 1 and brackets == "()":
    return form(spelling.clean(inner))
  if len(items) == 1 and brackets != "{}":
    return None
  return Group(brackets, tuple(spelling.clean(item) for _, item in items))


def _is_one_bracket(text: str) -> bool:
  """Whether the bracket that opens a text closes at its end: (1)(2) does not."""
  depth = 0
  for at, character in enumerate(text):
    depth += (character in "([{") - (character in ")]}")
    if depth == 0 and character in ")]}":
      return at == len(text) - 1
  return False


def _matrix(text: str) -> Group | None:
  found = _ENVIRONMENT.fullmatch(text)
  if found is None or r"\begin" in found[1]:
    return None
  rows = []
  for row in found[1].strip().removesuffix("\\\\").split("\\\\"):
    rows.append([spelling.clean(cell) for cell in row.split("&")])
  if len({len(row) for row in rows}) != 1:
    return None
  return Group(f"matrix {len(rows)}x{len(rows[0])}", tuple(cell for row in rows for cell in row))


# Words and formulas.

_WORDS = re.compile(
  r"(?:\\word|[A-Za-z '.\-])+"
)  # one character a turn: runs inside runs would take exponential time
_INFINITY = re.compile(r"([-+]?)\s*\\infty")
_EMPTY = re.compile(r"\\emptyset|\\varnothing|\\\{\s*\\\}")
_LONG_RUN = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_ONE_LETTER_UNIT = re.compile(r".*[\d)}]\s+([A-Za-z])")


def _words(text: str) -> Word | None:
  if infinity := _INFINITY.fullmatch(text):
    return Word("-infinity" if infinity[1] == "-" else "infinity")
  if _EMPTY.fullmatch(text):
    return Word("empty set")
  if not _WORDS.fullmatch(text):
    return None
  as_text = r"\word" in text
  words = " ".join(text.replace(r"\word", " ").replace(".", " ").split())
  if len(words) == 1:
    return Word(words)
  # Letters without spaces that were not set as text may be a product of variables.
  if (
    _LONG_RUN.search(words)
    and (as_text or " " in words or len(words) > 3)
    and not _has_function(words)
  ):
    return Word(words.lower())
  return None


def _formula(text: str) -> Formula | Phrase | None:
  unit = _ONE_LETTER_UNIT.fullmatch(text)
  if unit and unit[1] in units.ONE_LETTER:
    return Phrase(text)  # 5 m: metres, or a product
  expression = expressions.parse(text)
  return None if expression is None else Formula(expression)


def _phrase(text: str) -> Phrase | None:
  bare = re.sub(r"\\word", " ", text)
  runs = [run for run in _LONG_RUN.findall(bare) if not _has_function(run)]
  return Phrase(text) if runs and "\\" not in bare else None
