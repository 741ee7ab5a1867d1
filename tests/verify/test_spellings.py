"""Other spellings of real golds are accepted, all of them."""

import random
import re

import pytest

# Each function spells an answer in another way, or returns None where it cannot.


def _dfrac(text):
  return text.replace(r"\frac", r"\dfrac")


def _short_fraction(text):
  return re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", text)


def _slash(text):
  return re.sub(r"^(-?)\\frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", text)


def _math(text):
  return f"${text}$"


def _display(text):
  return rf"\[ {text} \]"


def _full_stop(text):
  return text.rstrip(".,; ") + "."


def _spaced(text):
  if r"\begin" in text:
    return None
  return re.sub(r"(?<=[+=(-])|(?=[+=)-])", " ", text)


def _sized_brackets(text):
  if "(" not in text or r"\text" in text:
    return None
  text = re.sub(r"(?<!right)\)", r"\\right)", text)
  return re.sub(r"(?<!left)\(", r"\\left(", text)


def _named(text):
  if re.fullmatch(r"-?[\d.]+|-?\\frac\{\d+\}\{\d+\}|-?\d*\\sqrt\{\d+\}", text):
    return f"z = {text}"
  return None


def _unit_in_the_answer(text):
  if re.fullmatch(r"[\d.]+|\d*\\sqrt\{\d+\}|\d*\\pi", text):
    return text + r"\text{ cm}"
  return None


def _things_in_the_answer(text):
  if re.fullmatch(r"\d+", text):
    return text + " apples"
  return None


def _unit_in_the_gold(text):
  if not re.match(r"[\\\d$]", text) or "cos" in text:
    return None
  unit = r"\s*\\(?:text|mbox)\{[a-z ]+\}(\^\d)?$|\^\{?\\circ\}?$|\\%$|^\\\$"
  return re.sub(unit, "", text)


def _thousands(text):
  if re.fullmatch(r"[1-9]\d{3,}", text):
    return f"{int(text):,}"
  return None


def _currency(text):
  if re.fullmatch(r"\d+(\.\d+)?", text):
    return rf"\${text}"
  return None


def _degrees(text):
  if re.fullmatch(r"\d{1,3}", text):
    return rf"{text}^{{\circ}}"
  return None


def _percent(text):
  if re.fullmatch(r"\d{1,2}", text) and text != "0":
    return rf"{text}\%"
  return None


def _leading_zero(text):
  return re.sub(r"^\.(?=\d)", "0.", text)


def _minus(text):
  return text.replace("-", "\N{MINUS SIGN}")


def _decimal(text):
  decimals = {r"\frac{1}{2}": "0.5", r"\frac{3}{4}": ".75", r"\frac{1}{5}": "0.2"}
  return decimals.get(text)


def _commuted(text):
  """a + b as b + a."""
  pieces = re.split(r" ?\+ ?", text)
  fixed_order = r"[,=<>()\[{|]|\\text|\\le|\\ge|\\%|\\circ|-.*\+|^-|_"
  if len(pieces) != 2 or re.search(fixed_order, text):
    return None
  return f"{pieces[1]} + {pieces[0]}"


def _reordered(text):
  """A list backwards."""
  if re.search(r"[()\[\]=]|\\text|\d,(?:\\!)?\d{3}(?!\d)", text):
    return None
  # Commas within braces part nothing.
  items = re.split(r"[,;](?![^{}]*\})", text)
  if len(items) < 2:
    return None
  return ", ".join(item.strip() for item in reversed(items))


def _times(text):
  if r"\frac" in text:
    return None
  return re.sub(r"(?<=\d)(?=\\sqrt|\\pi)", r" \\cdot ", text)


def _semicolons(text):
  if re.fullmatch(r"[\d, -]+", text):
    return text.replace(", ", "; ")
  return None


def _or(text):
  if re.fullmatch(r"-?\d+, -?\d+", text):
    return text.replace(",", r" \text{ or } ")
  return None


def _dollars(text):
  if text.startswith(r"\$"):
    return text.replace(r"\$", "") + " dollars"
  return None


def _ascii_root(text):
  return re.sub(r"\\sqrt\{(\d+)\}", r"sqrt(\1)", text)


def _ascii_pi(text):
  return re.sub(r"\\pi(?![a-z])", " pi ", text)


def _braced_exponent(text):
  return re.sub(r"\^(\d)", r"^{\1}", text)


SPELLINGS = (
  _dfrac,
  _short_fraction,
  _slash,
  _math,
  _display,
  _full_stop,
  _spaced,
  _sized_brackets,
  _named,
  _unit_in_the_answer,
  _things_in_the_answer,
  _unit_in_the_gold,
  _thousands,
  _currency,
  _degrees,
  _percent,
  _leading_zero,
  _minus,
  _decimal,
  _commuted,
  _reordered,
  _times,
  _semicolons,
  _or,
  _dollars,
  _ascii_root,
  _ascii_pi,
  _braced_exponent,
)


def respelled(golds):
  """(spelling, gold, answer) of every gold and every spelling that changes it."""
  cases = []
  for gold in golds:
    for spelling in SPELLINGS:
      answer = spelling(gold)
      if answer and answer != gold:
        cases.append((spelling.__name__, gold, answer))
  return cases


@pytest.mark.slow
def test_other_spellings_of_golds_are_accepted(judge, golds):
  cases = respelled(golds(random.Random(7)))
  assert len(cases) > 10_000
  verdicts = judge.compare_many([(gold, answer) for _, gold, answer in cases])
  refused = []
  for case, verdict in zip(cases, verdicts):
    if not verdict.correct:
      refused.append((case, verdict.value))
  assert refused == []
