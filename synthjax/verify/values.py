"""Equality of what has no parts: numbers, words, formulas, and phrases that may mean anything."""

import re
from fractions import Fraction

from synthjax.verify import expressions, forms, numeric
from synthjax.verify.forms import Form, Formula, Phrase, Word
from synthjax.verify.numerals import Number
from synthjax.verify.policy import EqualityPolicy

# 10+John's age: a formula in which words stand for quantities is not a number.
_QUANTITY = r"(?!sqrt|sin|cos|tan|log|exp)[A-Z]?[a-z]{3,}"
_FORMULA_OF_WORDS = re.compile(
  rf"[\d)]\s*[-+*/]\s*{_QUANTITY}|(?<![\\A-Za-z]){_QUANTITY}\s*[+*/]\s*[\d(]"
)
_LEAST_PLACES = 6  # of a decimal that may stand for the value it was rounded from
# Words after a number that make it another one.
_MORE_THAN_A_UNIT = re.compile(
  r"\b(?:pi|sqrt|sin|cos|tan|log|ln|\w*ths?|halfs?|halves|thirds?|quarters?|hundreds?|thousands?|"
  r"millions?|billions?|trillions?|dozens?|pairs?|and|or|to|mod|squared|cubed|factorial|times|plus|"
  r"minus|over|percent|choose|less|more|than|not|by|divided|double|twice|triple)\b|[-+*/^!]",
  re.IGNORECASE,
)
_COUNTED = re.compile(r"(\d[\d,.]*)\s*\\word\s+[A-Za-z ]+")
_WITHIN = re.compile(r"\d[\d,]*(?:\.\d+)?")


def same(gold: Form, prediction: Form, policy: EqualityPolicy) -> bool | None:
  """True or False where that is certain, else None."""
  if isinstance(gold, Phrase) or isinstance(prediction, Phrase):
    return _same_phrases(gold, prediction)
  if isinstance(gold, Number) and isinstance(prediction, Number):
    return _same_numbers(gold, prediction, policy)
  if isinstance(gold, Word) and isinstance(prediction, Word):
    return _same_words(gold.text, prediction.text)
  return _same_values(gold, prediction, policy)


def is_counted(form: Form | None) -> bool:
  """Whether it is a number of things that are not in the list of units: 16 daps."""
  return isinstance(form, Phrase) and _COUNTED.fullmatch(form.text) is not None


def _same_numbers(gold: Number, prediction: Number, policy: EqualityPolicy) -> bool:
  if gold.value == prediction.value:
    return True
  if not policy.rounding:
    return gold.places + prediction.places > -2 and round(gold.value, 6) == round(
      prediction.value, 6
    )
  # A gold with fewer places does not stand for the prediction, which is another number.
  if gold.places >= 0 and prediction.places > gold.places:
    return False
  return _stands_for(gold, prediction.value) or _stands_for(prediction, gold.value)


def _stands_for(decimal: Number, value: Fraction) -> bool:
  """Whether a decimal of six or more places is a value, rounded or cut at its last place."""
  if not _is_precise(decimal):
    return False
  return abs(decimal.value - value) < Fraction(1, 10**decimal.places)


def _is_precise(decimal: Number) -> bool:
  """Whether it has six or more places, and six or more digits beside leading zeros."""
  if decimal.places < _LEAST_PLACES:
    return False
  return abs(decimal.value) * 10**decimal.places >= 10**5


def _same_values(gold: Form, prediction: Form, policy: EqualityPolicy) -> bool | None:
  """Numbers, formulas and single letters by value at random points."""
  one = _expression(gold)
  other = _expression(prediction)
  if one is None or other is None:
    return _same_word_and_formula(gold, prediction)
  same = numeric.same(one, other)
  if same and isinstance(gold, Number) and policy.unevaluated:
    return False
  if same is not False:
    return same
  if isinstance(gold, Number) and _rounds(gold, other, policy):
    return True
  return isinstance(prediction, Number) and _rounds(prediction, one, policy)


def _same_word_and_formula(gold: Form, prediction: Form) -> bool | None:
  """No, but for letters that may be a product of the variables of the formula."""
  word, formula = gold, prediction
  if isinstance(prediction, Word):
    word, formula = prediction, gold
  if not isinstance(word, Word) or not isinstance(formula, Formula):
    return False
  if set(word.text) == formula.expression.names:
    return None
  return False


def _rounds(decimal: Number, exact: expressions.Expression, policy: EqualityPolicy) -> bool:
  """Whether a decimal stands for the value of an expression."""
  distance = Fraction(1, 10**6)
  if policy.rounding and not _is_precise(decimal):
    return False
  if policy.rounding:
    distance = Fraction(1, 10**decimal.places)
  elif decimal.places < 0:
    return False
  return numeric.close(decimal.value, exact, distance) is True


def _expression(form: Form) -> expressions.Expression | None:
  if isinstance(form, Formula):
    return form.expression
  if isinstance(form, Number):
    return numeric.constant(form.value)
  if isinstance(form, Word) and len(form.text) == 1:
    return expressions.parse(form.text)
  return None


def _same_words(gold: str, prediction: str) -> bool | None:
  if gold == prediction:
    return True
  if len(gold) == len(prediction) == 1:
    return False
  # The same letters may be a product in another order.
  if _letters(gold) == _letters(prediction):
    return None
  return False


def _letters(words: str) -> list[str]:
  return sorted(words.lower().replace(" ", ""))


def _lowered(text: str) -> str:
  return re.sub(r"[\s.]|\\word", "", text).lower()


def _same_phrases(gold: Form, prediction: Form) -> bool | None:
  if isinstance(gold, Phrase) and isinstance(prediction, Phrase):
    return _lowered(gold.text) == _lowered(prediction.text) or None
  phrase, other = prediction, gold
  if isinstance(gold, Phrase):
    phrase, other = gold, prediction
  if not isinstance(phrase, Phrase) or not isinstance(other, Number):
    return None
  if _FORMULA_OF_WORDS.search(phrase.text) and phrase is prediction:
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
