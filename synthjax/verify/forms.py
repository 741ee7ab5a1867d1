"""What an answer is: a number, a quantity, words, a group, an assignment, a relation, a formula.

`form` reads a cleaned answer (`spelling.clean`); parts are cleaned texts again, read in their turn.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from synthjax.verify import expressions, numerals, numeric, spelling, units
from synthjax.verify.numerals import Number


class Quantity(NamedTuple):
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


Form = Number | Quantity | Word | Group | Assigned | Relation | Formula | Phrase


@functools.lru_cache(1 << 16)
def form(text: str) -> Form | None:
  """The form of a cleaned answer, or None where it has none."""
  if text.isdigit() and text.isascii():
    return Number(Fraction(int(text)))
  if not text or not spelling.is_balanced(text):
    return None
  for read in _READERS:
    found = read(text)
    if found is not None:
      return found
  return None


# Units.

_CURRENCIES = {"$": "dollar", "\N{POUND SIGN}": "pound", "\N{EURO SIGN}": "euro"}
_CURRENCY_BEFORE = re.compile(r"(?P<sign>[-+]?)\s*(?P<currency>[$\u00a3\u20ac])\s*(?P<body>.+)")
_DEGREE = re.compile(r"(?P<body>.*\S)\s*\\degree\s*(?:\\word)?\s*(?P<scale>[CF]?)")
_TAIL = re.compile(
  r"(?<![\\A-Za-z])(?P<words>(?:\\word|[A-Za-z.\-/]|\s)+)(?P<power>\^\s*\{?\d\}?)?$"
)
_TEMPERATURES = {"C": "celsius", "F": "fahrenheit", "": "degree"}
# A text that ends like this lacks an operand: what follows is no unit.
_UNFINISHED = ("+", "-", "*", "/", "^", "=", "(", ",", "<", ">", "_")


def _measured_number(text: str) -> Quantity | None:
  measured = _measured(text)
  if measured is None or numerals.read(measured.body) is None:
    return None
  return measured


def _measured(text: str) -> Quantity | None:
  """Something that ends with a unit of the known list, or has a percent sign or a currency."""
  if before := _CURRENCY_BEFORE.fullmatch(text):
    return _with_currency(before["sign"] + before["body"], _CURRENCIES[before["currency"]])
  sign = text[-1]
  body = text[:-1].strip()
  if sign == "%" or sign in _CURRENCIES:
    if not body or body[-1] == "%" or body[-1] in _CURRENCIES:
      return None
    return Quantity(body, _CURRENCIES.get(sign, "percent"))
  degree = _DEGREE.fullmatch(text)
  if degree and r"\degree" not in degree["body"] and not _has_function(degree["body"]):
    return Quantity(degree["body"], _TEMPERATURES[degree["scale"]])
  tail = _TAIL.search(text)
  if tail is None:
    return None
  return _split_unit(text, tail)


_FUNCTION = re.compile(
  r"(?<![A-Za-z])(?:arc)?(?:sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt)(?![a-z]{2})"
)


def _has_function(text: str) -> bool:
  return _FUNCTION.search(text) is not None


def _split_unit(text: str, tail: re.Match) -> Quantity | None:
  words = tail["words"]
  power = tail["power"] or ""
  for start in re.finditer(r"(?:\\word\s+)?(?<![A-Za-z.\-/])[A-Za-z]", words):
    body = text[: tail.start() + start.start()].strip()
    if not body or body.endswith(_UNFINISHED):
      continue
    if not _may_precede_unit(words[: start.start()]):
      continue
    as_text = r"\word" in words[: start.end()]
    following = words[start.start() :].replace(r"\word", " ")
    unit = units.read(following + power, as_text)
    if unit is not None:
      return Quantity(body, unit)
  return None


def _may_precede_unit(words: str) -> bool:
  """Only scales, spelled numbers and variables: 12 square units squared are no units squared."""
  for word in words.replace(r"\word", " ").lower().split():
    if len(word) > 1 and word not in units.SCALES and word not in numerals.SPELLED:
      return False
  return True


def _with_currency(body: str, currency: str) -> Quantity:
  """`$5`, `$5 dollars`, `$5 per hour`."""
  if rate := re.fullmatch(
    r"(?P<body>.*[\d}])\s*(?:\\word\s+)?"
    r"(?P<rate>(?:per|an?|each)\s[a-z ]+|/\s*(?:\\word\s+)?[a-z]+)",
    body,
  ):
    unit = units.read(f"{currency} {rate['rate']}".replace(r"\word", " "))
    if unit:
      return Quantity(rate["body"].strip(), unit)
  measured = _measured(body)
  if measured is not None and measured.unit == currency:
    return measured
  return Quantity(body, currency)


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
# (C), of a multiple choice.
_OPTION = re.compile(r"(?:\\word)?\s*\(\s*(?:\\word)?\s*([A-Za-z])\s*\)\s*")
_ENVIRONMENT = re.compile(r"\\begin\{[pb]matrix\}(.*)\\end\{[pb]matrix\}", re.DOTALL)


_ASSIGNING = {"=", r"\in", r"\approx"}


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
  sides = tuple(piece for _, piece in pieces)
  signs = tuple(sign for sign, _ in pieces[1:])
  if set(signs) <= _ASSIGNING and _is_name(sides[0]) and _agree(sides[1:]):
    return Assigned(_squeezed_name(sides[0]), sides[-1])
  # 5 = x
  if signs == ("=",) and _SYMBOL.fullmatch(sides[1]) and not _SYMBOL.fullmatch(sides[0]):
    return Assigned(_squeezed_name(sides[1]), sides[0])
  return Relation(sides, signs)


def _is_name(text: str) -> bool:
  if _TEXT_NAME.fullmatch(text):
    return True
  if _NAME.fullmatch(text) is None or _has_function(text):
    return False
  return r"\pi" not in text and r"\infty" not in text


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
  option = _OPTION.fullmatch(text)
  if option is None:
    return None
  return Word(option[1].upper())


def _bracketed(text: str) -> Form | None:
  for kind, separator in (("union", _CUP), (":", _COLON)):
    pieces = spelling.split(text, separator)
    if pieces is not None and len(pieces) > 1:
      return Group(kind, tuple(piece for _, piece in pieces))
  opening = text[:1]
  closing = text[-1:]
  if text.startswith(r"\{") and text.endswith(r"\}"):
    brackets = "{}"
    inner = text[2:-2].strip()
  elif opening in ("(", "[") and closing in (")", "]"):
    brackets = opening + closing
    inner = text[1:-1].strip()
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
  environment = _ENVIRONMENT.fullmatch(text)
  if environment is None or r"\begin" in environment[1]:
    return None
  rows = environment[1].strip().removesuffix("\\\\").split("\\\\")
  cells: list[str] = []
  widths = set()
  for row in rows:
    row_cells = [spelling.clean(cell) for cell in row.split("&")]
    cells += row_cells
    widths.add(len(row_cells))
  if len(widths) != 1:
    return None
  return Group(f"matrix {len(rows)}x{widths.pop()}", tuple(cells))


# Words and formulas.

# One character a turn: runs inside runs would take exponential time.
_WORDS = re.compile(r"(?:\\word|[A-Za-z '.\-])+")
_INFINITY = re.compile(r"([-+]?)\s*\\infty")
_EMPTY = re.compile(r"\\emptyset|\\varnothing|\\\{\s*\\\}")
_LONG_RUN = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_ONE_LETTER_UNIT = re.compile(r".*[\d)}]\s+([A-Za-z])")


def _words(text: str) -> Word | None:
  if infinity := _INFINITY.fullmatch(text):
    if infinity[1] == "-":
      return Word("-infinity")
    return Word("infinity")
  if _EMPTY.fullmatch(text):
    return Word("empty set")
  if not _WORDS.fullmatch(text):
    return None
  as_text = r"\word" in text
  words = " ".join(text.replace(r"\word", " ").replace(".", " ").split())
  if len(words) == 1:
    return Word(words)
  # Letters without spaces that were not set as text may be a product of variables.
  may_be_product = not as_text and " " not in words and len(words) <= 3
  if may_be_product or not _LONG_RUN.search(words) or _has_function(words):
    return None
  return Word(words.lower())


def _formula(text: str) -> Formula | Phrase | None:
  unit = _ONE_LETTER_UNIT.fullmatch(text)
  if unit and unit[1] in units.ONE_LETTER:
    return Phrase(text)  # 5 m: metres, or a product
  expression = expressions.parse(text)
  if expression is None:
    return None
  return Formula(expression)


def _phrase(text: str) -> Phrase | None:
  bare = re.sub(r"\\word", " ", text)
  runs = [run for run in _LONG_RUN.findall(bare) if not _has_function(run)]
  if runs and "\\" not in bare:
    return Phrase(text)
  return None


# The first reader that takes the text decides. Numbers, with a unit or without, come before lists:
# `1,200 dollars` is no list.
_READERS = (
  numerals.read,
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
)
