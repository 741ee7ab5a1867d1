r"""The value of a closed-form expression in floating point: enough to be certain that two are different, never that they are equal.

Numbers, + - * / ^, implicit products, \frac, \sqrt, \pi, brackets and single-letter variables, each of which stands for a fixed number.
A parser of its own: nothing is evaluated.
"""

import math
import re

_DEEPEST = 30  # brackets within brackets
_TOKEN = re.compile(r"\s*(?:(\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?|\.\d+)|(\\[A-Za-z]+|[A-Za-z])|([-+*/^(){}\[\]]))")
_APART = 1e-6  # relative difference above which two values are certainly not one


class Unknown(Exception):
  """The text is not such an expression, or means more than one thing."""


def value(text: str) -> float | None:
  """The expression's value, or None where it has none."""
  try:
    tokens = _tokens(text)
    reader = _Reader(tokens)
    found = reader.sum(0)
    if reader.left() or isinstance(found, complex) or not math.isfinite(found):
      return None
    return found
  except (Unknown, ArithmeticError, ValueError):
    return None


def apart(one: float, other: float) -> bool:
  """Whether two values are certainly different."""
  return abs(one - other) > _APART * max(abs(one), abs(other), 1e-3)


def _tokens(text: str) -> list[str]:
  tokens, at = [], 0
  text = text.rstrip()
  while at < len(text):
    match = _TOKEN.match(text, at)
    if match is None:
      raise Unknown
    tokens.append(match[1].replace(",", "") if match[1] else match[2] or match[3])
    at = match.end()
  if not tokens:
    raise Unknown
  return tokens


def _letter(name: str) -> float:
  """A number between 1/2 and 3/2 for every variable; e and i are numbers of their own and stay unknown."""
  if name in "ei":
    raise Unknown
  return 0.5 + (math.sin(37.0 * ord(name)) * 1e4) % 1.0


class _Reader:
  """Recursive descent over the tokens."""

  def __init__(self, tokens: list[str]):
    self._tokens, self._at = tokens, 0

  def left(self) -> bool:
    return self._at < len(self._tokens)

  def _peek(self) -> str:
    return self._tokens[self._at] if self.left() else ""

  def _next(self) -> str:
    self._at += 1
    return self._tokens[self._at - 1] if self._at <= len(self._tokens) else ""

  def sum(self, depth: int) -> float:
    if depth > _DEEPEST:
      raise Unknown
    total = self._product(depth)
    while self._peek() in ("+", "-"):
      total = total + self._product(depth) if self._next() == "+" else total - self._product(depth)
    return total

  def _product(self, depth: int) -> float:
    sign = 1.0
    while self._peek() in ("+", "-"):
      sign = -sign if self._next() == "-" else sign
    total, plain_number = self._power(depth)
    while True:
      following = self._peek()
      if following in ("*", "/"):
        self._next()
        factor, _ = self._power(depth)
        total = total * factor if following == "*" else total / factor
      elif following and following not in "+-)}]^":
        if plain_number and (following == r"\frac" or following[0].isdigit() or following == "("):
          raise Unknown  # 3\frac12 and 3(2) may be a mixed number or a function
        total *= self._power(depth)[0]
      else:
        return sign * total
      plain_number = False

  def _power(self, depth: int) -> tuple[float, bool]:
    """(value, whether it is a bare number)."""
    bare = self._peek()[:1].isdigit()
    base = self._atom(depth)
    if self._peek() == "^":
      self._next()
      negative = self._peek() == "-"
      if negative:
        self._next()
      exponent = self._atom(depth)
      return base ** (-exponent if negative else exponent), False
    return base, bare

  def _atom(self, depth: int) -> float:
    token = self._next()
    if token[:1].isdigit() or token[:1] == ".":
      return float(token)
    if token == r"\pi":
      return math.pi
    if token in ("(", "{"):
      inner = self.sum(depth + 1)
      if self._next() != {"(": ")", "{": "}"}[token]:
        raise Unknown
      return inner
    if token == r"\frac":
      return self._argument(depth) / self._argument(depth)
    if token == r"\sqrt":
      return self._root(depth)
    if len(token) == 1 and token.isalpha():
      return _letter(token)
    raise Unknown

  def _root(self, depth: int) -> float:
    degree = 2.0
    if self._peek() == "[":
      self._next()
      degree = self.sum(depth + 1)
      if self._next() != "]":
        raise Unknown
    return self._argument(depth) ** (1.0 / degree)

  def _argument(self, depth: int) -> float:
    """A group, or one character: \\frac12 is a half."""
    token = self._peek()
    if token[:1].isdigit() and len(token) > 1:
      self._tokens[self._at] = token[1:]
      if not token.isdigit():
        raise Unknown
      return float(token[0])
    return self._atom(depth)
