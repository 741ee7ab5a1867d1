"""Equality of what has no parts: numbers, words, formulas, and phrases that may mean anything."""

import re
from fractions import Fraction

from synthjax.verify import expressions, forms, numeric
from synthjax.verify.forms import Form, Formula, Number, Phrase, Word
from synthjax.verify.policy import Policy

# 10+John's age: a formula in which words stand for quantities is not a number.
_QUANTITY = r"(?!sqrt|sin|cos|tan|log|exp)[A-Z]?[a-z]{3,}"
_FORMULA_OF_WORDS = re.compile(
  rf"[\d)]\s*[-+*/]\s*{_QUANTITY}|(?<![\\A-Za-z]){_QUANTITY}\s*[+*/]\s*[\d(]"
)
# Words after a number that make it another one.
_MORE_THAN_A_UNIT = re.compile(
  r"\b(?:pi|sqrt|sin|cos|tan|log|ln|\w*ths?|halfs?|halves|thirds?|quarters?|hundreds?|thousands?|"
  r"millions?|billions?|trillions?|dozens?|pairs?|and|or|to|mod|squared|cubed|factorial|times|plus|"
  r"minus|over|percent|choose|less|more|than|not|by|divided|double|twice|triple)\b|[-+*/^!]",
  re.IGNORECASE,
)
_COUNTED = re.compile(r"(\d[\d,.]*)\s*\\word\s+[A-Za-z ]+")
_WITHIN = re.compile(r"\d[\d,]*(?:\.\d+)?")


def same(gold: Form, found: Form, policy: Policy) -> bool | None:
  """True or False where that is certain, else None."""
  if isinstance(gold, Phrase) or isinstance(found, Phrase):
    return _same_phrases(gold, found)
  if isinstance(gold, Number) and isinstance(found, Number):
    return _same_numbers(gold, found, policy)
  if isinstance(gold, Word) and isinstance(found, Word):
    return _same_words(gold.text, found.text)
  return _same_values(gold, found, policy)


def is_counted(form: Form | None) -> bool:
  """Whether it is a number of things that are not in the list of units: 16 daps."""
  return isinstance(form, Phrase) and _COUNTED.fullmatch(form.text) is not None


def _same_numbers(gold: Number, found: Number, policy: Policy) -> bool:
  if gold.value == found.value:
    return True
  if not policy.rounding:
    return gold.places + found.places > -2 and round(gold.value, 6) == round(found.value, 6)
  # A gold with fewer places does not stand for the prediction, which is another number.
  if gold.places >= 0 and found.places > gold.places:
    return False
  return _stands_for(gold, found.value) or _stands_for(found, gold.value)


def _stands_for(decimal: Number, value: Fraction) -> bool:
  """Whether a decimal of six or more places is a value, rounded or cut at its last place."""
  if decimal.places < 6 or abs(decimal.value) * 10**decimal.places < 10**5:
    return False
  return abs(decimal.value - value) < Fraction(1, 10**decimal.places)


def _same_values(gold: Form, found: Form, policy: Policy) -> bool | None:
  """Numbers, formulas and single letters by value at random points."""
  one, other = _expression(gold), _expression(found)
  if one is None or other is None:
    return _same_word_and_formula(gold, found)
  same = numeric.same(one, other)
  if same and isinstance(gold, Number) and policy.unevaluated:
    return False
  if same is False:
    for decimal, exact in ((gold, other), (found, one)):
      if isinstance(decimal, Number) and _rounds(decimal, exact, policy):
        return True
  return same


def _same_word_and_formula(gold: Form, found: Form) -> bool | None:
  """No, but for letters that may be a product of the variables of the formula."""
  word, formula = (gold, found) if isinstance(gold, Word) else (found, gold)
  if not isinstance(word, Word) or not isinstance(formula, Formula):
    return False
  return None if set(word.text) == formula.expression.names else False


def _rounds(decimal: Number, exact: expressions.Expression, policy: Policy) -> bool:
  if not policy.rounding:
    return decimal.places >= 0 and numeric.close(decimal.value, exact, Fraction(1, 10**6)) is True
  if decimal.places < 6 or abs(decimal.value) * 10**decimal.places < 10**5:
    return False
  return numeric.close(decimal.value, exact, Fraction(1, 10**decimal.places)) is True


def _expression(form: Form) -> expressions.Expression | None:
  if isinstance(form, Formula):
    return form.expression
  if isinstance(form, Number):
    return numeric.constant(form.value)
  if isinstance(form, Word) and len(form.text) == 1:
    return expressions.parse(form.text)
  return None


def _same_words(gold: str, found: str) -> bool | None:
  if gold == found:
    return True
  if len(gold) == len(found) == 1:
    return False
  letters, others = (sorted(words.lower().replace(" ", "")) for words in (gold, found))
  # The same letters may be a product in another order.
  return None if letters == others else False


def _lowered(text: str) -> str:
  return re.sub(r"[\s.]|\\word", "", text).lower()


def _same_phrases(gold: Form, found: Form) -> bool | None:
  if isinstance(gold, Phrase) and isinstance(found, Phrase):
    return True if _lowered(gold.text) == _lowered(found.text) else None
  phrase, other = (gold, found) if isinstance(gold, Phrase) else (found, gold)
  if not isinstance(phrase, Phrase) or not isinstance(other, Number):
    return None
  if _FORMULA_OF_WORDS.search(phrase.text) and phrase is found:
    return False
  # 25 zebras are not 24 of anything, whatever zebras are.
  text = phrase.text.replace(r"\word", " ")
  if _MORE_THAN_A_UNIT.search(text):
    return None
  counted = _COUNTED.fullmatch(phrase.text)
  if phrase is gold and counted is not None:
    return forms.form(counted[1]) == other  # a gold knows its own unit
  for digits in _WITHIN.findall(text):
    number = forms.form(digits.rstrip(","))
    if isinstance(number, Number) and number.value == other.value:
      return None
  return False
