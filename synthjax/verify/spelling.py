r"""Spellings of an answer brought to one: delimiters, spacing, styles, signs of other alphabets.

Nothing that carries a meaning is lost: text that was set as such (`\text{...}`) is marked `\word`,
a degree is `\degree`, a sign of currency stays.
"""

import functools
import re

_TEXT = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"
_CLEANED = [
  (re.compile(pattern), new)
  for pattern, new in (
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\d?binom(?![A-Za-z])", r"\\binom"),
    (r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle|limits)(?![A-Za-z])", ""),
    (r"(?<=\d),?(?:\\[,!;:]|\{,\}|\\ )+(?=\d{3}(?!\d))", ","),  # 1\,000, 1,\!000 and 1{,}000
    (r"\\phantom\s*(?:\{[^{}]*\}|.)", ""),
    (r"(?<!\\)\\[()\[\]]", " "),
    (r"(?<!\\)\\[,!;:>]|(?<!\\)\\ |~|\\q?quad", " "),
    (
      r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|\\textdegree|(?<=\d)\s*\\circ(?![A-Za-z])",
      r" \\degree ",
    ),
    (_TEXT.replace(r"([^{}]*)", r"\s*([-+]?[\d.,/%$]+)\s*"), r"\1"),
    (_TEXT.replace(r"([^{}]*)", r"\s*(,?\s*(?:and|or))\s*,?\s*"), r" \1 "),
    (_TEXT, r" \\word \1 "),
    (r"^\s*\\approx(?![A-Za-z])", ""),
    (r"\\([$%#&])", r"\1"),
    (r"\\(?:times|cdot)(?![A-Za-z])|\\ast(?![A-Za-z])", "*"),
    (r"\\div(?![A-Za-z])", "/"),
    (r"\\leq?(?![A-Za-z])|\\leqslant|<=", r" \\leq "),
    (r"\\geq?(?![A-Za-z])|\\geqslant|>=", r" \\geq "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\neq?(?![A-Za-z])|!=", r" \\neq "),
    (r"\\colon(?![A-Za-z])", ":"),
    (r"\\lbrack(?![A-Za-z])", "["),
    (r"\\rbrack(?![A-Za-z])", "]"),
    (r"\\lbrace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi"),
    (r"(?<![\\A-Za-z])(?:inf|infinity|infty)(?![A-Za-z])", r"\\infty"),
    (r"\\langle(?![A-Za-z])", "("),
    (r"\\rangle(?![A-Za-z])", ")"),
    (r"\*\*", "^"),
    (r"_\{(\w+)\}", r"_\1"),
    (r"\^\{(\w)\}", r"^\1"),
  )
]
_ROOT = re.compile(r"\N{SQUARE ROOT}\s*(\d+(?:\.\d+)?|[A-Za-z]|(?=\())")
_CHARACTERS = str.maketrans(
  {
    **dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}\N{HYPHEN}\N{NON-BREAKING HYPHEN}", "-"),
    **dict.fromkeys("\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}", " "),
    "\N{FULLWIDTH COMMA}": ",",
    "\N{DEGREE SIGN}": r"\degree ",
    "\N{MULTIPLICATION SIGN}": "*",
    "\N{MIDDLE DOT}": "*",
    "\N{DOT OPERATOR}": "*",
    "\N{DIVISION SIGN}": "/",
    "\N{GREEK SMALL LETTER PI}": r"\pi ",
    "\N{GREEK SMALL LETTER THETA}": r"\theta ",
    "\N{INFINITY}": r"\infty ",
    "\N{LESS-THAN OR EQUAL TO}": r"\leq ",
    "\N{GREATER-THAN OR EQUAL TO}": r"\geq ",
    "\N{NOT EQUAL TO}": r"\neq ",
    "\N{PLUS-MINUS SIGN}": r"\pm ",
    "\N{UNION}": r"\cup ",
    "\N{ELEMENT OF}": r"\in ",
    "\N{SUPERSCRIPT TWO}": "^2",
    "\N{SUPERSCRIPT THREE}": "^3",
    "\N{VULGAR FRACTION ONE HALF}": r"\frac{1}{2}",
    "\N{VULGAR FRACTION ONE QUARTER}": r"\frac{1}{4}",
    "\N{VULGAR FRACTION THREE QUARTERS}": r"\frac{3}{4}",
  }
)
_PLAIN = re.compile(r"[-\d.,/ ]*")
_DOLLAR = re.compile(r"(?<!\\)\$")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}", re.DOTALL)


@functools.lru_cache(1 << 16)
def clean(text: str) -> str:
  """The answer without what carries no meaning, and with one spelling for what does."""
  text = text.strip()
  if text.isdigit() and text.isascii():
    return text
  if _PLAIN.fullmatch(text) is None:
    text = _translated(text)
  # A full stop ends a sentence, and 7. is 7; dots that go on stand for something.
  if text.endswith((".", ",", ";")) and not text.endswith(".."):
    return text[:-1].strip()
  return text


def _translated(text: str) -> str:
  text = _ROOT.sub(r"\\sqrt{\1}", text).replace(r"\sqrt{}", r"\sqrt").translate(_CHARACTERS)
  # Dollar signs in pairs delimit mathematics; a single one is currency, as \$ is.
  if len(_DOLLAR.findall(text)) % 2 == 0:
    text = _DOLLAR.sub("", text)
  boxed = _BOX.fullmatch(text.strip())
  if boxed is not None and is_balanced(boxed[1]):
    text = boxed[1]
  for pattern, new in _CLEANED:
    text = pattern.sub(new, text)
  return text.strip()


def squeeze(text: str) -> str:
  """Without spaces and text marks; a space between digits has a meaning (1 1/2)."""
  return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text.replace(r"\word", ""))


_OPENING = "([{"
_CLOSING = ")]}"


def is_balanced(text: str) -> bool:
  r"""Whether braces match, \{ and \} apart, and brackets close, [0, 1) included."""
  groups = sets = brackets = 0
  for mark in re.finditer(r"\\\\|\\[{}]|[{}()\[\]]", text):
    sign = mark[0]
    groups += (sign == "{") - (sign == "}")
    sets += (sign == r"\{") - (sign == r"\}")
    brackets += (sign in ("(", "[")) - (sign in (")", "]"))
    if min(groups, sets, brackets) < 0:
      return False
  return groups == sets == brackets == 0


def split(text: str, separator: re.Pattern) -> list[tuple[str, str]] | None:
  """(separator, piece) at the separators outside brackets; None where a piece is empty."""
  pieces = []
  before = ""
  depth = start = at = 0
  while at < len(text):
    character = text[at]
    if character in _OPENING:
      depth += 1
    elif character in _CLOSING:
      depth -= 1
    elif depth == 0 and (match := separator.match(text, at)):
      pieces.append((before, text[start:at].strip()))
      before = match[0].strip()
      start = at = match.end()
      continue
    at += 1
  pieces.append((before, text[start:].strip()))
  if not all(piece for _, piece in pieces):
    return None
  return pieces
