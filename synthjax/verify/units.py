"""Units of answers: a known list, each read into one canonical name.

`5 choose two`, `5 tenths` and `5 less than x` are other answers than 5, so a number may be followed
by these words alone: measures, things that word problems count (the nouns that follow a number in
GSM8K, SVAMP and MATH), and the fillers around them. Words that are not in the list are no unit.
"""

import functools
import re

SCALES = {
  "dozen": 12,
  "hundred": 10**2,
  "thousand": 10**3,
  "million": 10**6,
  "billion": 10**9,
  "trillion": 10**12,
}

# A line names a unit, then its other spellings; a plural in -s is understood.
_MEASURES = """
degree deg
celsius
fahrenheit
radian rad
percent
dollar usd buck
cent
euro
pound lb lbs
ounce oz
ton tonne
cm centimeter centimetre
mm millimeter millimetre
dm decimeter decimetre
m meter metre
km kilometer kilometre
inch inches in
foot feet ft
yard yd
mile mi
kg kgs kilogram kilo
g gram gm
mg milligram
l liter litre
ml milliliter millilitre
gallon gal
quart qt
pint pt
cup
tablespoon tbsp
teaspoon tsp
acre
hectare
second sec
minute min
hour hr
day
week
month
year yr
decade
century centuries
am
pm
mph
kmph kph
hertz hz
watt
volt
ohm
joule
newton
unit
"""

# Singular nouns; -s, -es and -ies are understood.
_THINGS = """
acorn action ad adult album alligator animal answer ant apartment apple arrangement article baby
bag bale ball balloon banana band bandage bar barrel baseball basket basketball batch bead bean
bear bed bee berry bicycle bike bill bird biscuit blanket block blueberry board boat bolt bone book
bottle bouquet bowl box boy bracelet branch bread brick brother brownie bucket bug building bulb
bunch bundle burger burrito bus bushel butterfly button cake calorie can candle candy cap car card
carriage carrot carton cartwheel case cat chair channel chapter cheese cherry chicken child chip
chocolate choice circle class classmate clip cloth coat cocktail coconut coin color combination
computer cone container cookie corner country cow crab cracker crate crayon crow cube cucumber
cupcake customer daisy daughter decoration desk digit dime dinner dinosaur dish distribution dog
doll dolphin donut door doughnut dragon dress drink drop duck duckling ear earring edge egg
elephant email employee emu envelope episode eraser error essay event exam eye face family fan
feather fence file fire firework fish flag flavor flea flight flock floor flower fly flyer follower
fork friend frog fruit game gem giraffe girl glass goal goat goldfish grain grandchild grape group
guest gumball hamburger hamster hat head hen home homework horse hot-dog hotdog house ice icicle
infection insect instrument integer item jar jellybean jersey job joke jump kernel key kid kitten
knife ladybug lamp lap leaf leg legionnaire lego lemon letter level light line lion liquid list
lizard load loaf lobster log lollipop lot lunch machine magazine magnet male mango map marble mark
marker marshmallow mask match meal medal medium meeting member message mirror mistake monkey mother
mouse movie muffin multiple mushroom nail name napkin necklace nickel night note notebook number
nurse nut object onion orange order outcome outfit oyster package packet pad page painting pan
pancake panda pants paper parent park part participant passenger pastry patient peach peanut pear
pearl pebble pen pencil penguin penny people pepper permutation person pet petal phone photo pick
picture pie piece pig pigeon pill pillow pin pineapple pitcher pizza place plane plank plant plate
player pocket poem point pole pond pony popsicle post postcard poster pot potato pound present
prime prize problem program project pumpkin puppy puzzle question rabbit raccoon racer rat record
rectangle ribbon ride ring roach rock roll room rope rose round row ruler run sack sandwich scarf
school score scoop seagull seashell season seat section seed segment selfie serving set shark sheep
sheet shelf shell shift ship shirt shoe shot shrimp side sister skateboard skirt sleeper slice
snack snail snake soap sock soda solution song soldier sparrow spider spoon sponge spot square
stack staff stair stamp star state step stick sticker stitch stock stone story strawberry string
stripe student sunflower surfer surprise sweater sweet swimmer t-shirt table tadpole tail task team
teacher tennis test text thing ticket tie tile tire toddler token tomato tooth toy tourist towel
train tray treat tree triangle trip truck tube tulip turkey turtle turn tv vacation value van vase
vegetable vehicle video visitor vote wagon walker wall watch watermelon way weed whale wheel window
wing woman man men women word worker world worm zebra children mice geese feet teeth leaves loaves
knives
"""
_LEADING = frozenset(("of", "a", "an", "the"))
_ADJECTIVES = """
small large big tall short long new old red blue green yellow white black brown purple pink orange
different distinct total right full whole female male adult regular extra additional other
remaining positive negative possible wooden gold silver
"""
_TRAILING = frozenset(("left", "total", "altogether", "remaining", "overall", "each"))
_IRREGULAR = {
  "children": "child",
  "people": "person",
  "men": "man",
  "women": "woman",
  "mice": "mouse",
  "geese": "goose",
  "teeth": "tooth",
  "leaves": "leaf",
  "loaves": "loaf",
  "knives": "knife",
  "shelves": "shelf",
  "scarves": "scarf",
}
_COMPOUND = {"mph": "mile/hour", "kmph": "km/hour"}
_POWERS = {
  "square": "^2",
  "sq": "^2",
  "cubic": "^3",
  "cu": "^3",
  "squared": "^2",
  "cubed": "^3",
}
_BEFORE = ("square", "sq", "cubic", "cu")  # powers that stand before their unit
_MOST_WORDS = 6


def _measures() -> dict[str, str]:
  """Canonical name of every spelling."""
  canonical = {}
  for line in _MEASURES.split("\n"):
    words = line.split()
    for word in words:
      canonical[word] = words[0]
  return canonical


_CANONICAL = _measures()
_COUNTED = frozenset(_THINGS.split())
_DESCRIPTIVE = frozenset(_ADJECTIVES.split())
# Letters that are a unit only where they are set as text: 5 m may be a product.
ONE_LETTER = frozenset("mglshN")


@functools.lru_cache(1 << 14)
def read(words: str, as_text: bool = False) -> str | None:
  """The canonical name of a unit, as `cm^2` or `mile/hour`, or None where the words are not one.

  Args:
    words: what follows a number, such as `square feet`, `dollars per hour`, `cm^2`.
    as_text: whether they were set as text, so that a single letter is a unit.
  """
  text = words.replace("/", " per ")
  text = re.sub(r"\s*\^\s*\{?\s*(\d)\s*\}?", r" ^\1 ", text).lower()
  text = re.sub(r"\b([ap])\s*\.\s*m\b\.?", r"\1m", text)  # a.m. and p.m.
  tokens = re.sub(r"(?<=[A-Za-z])\.", "", text).split()
  while tokens and tokens[-1] in _TRAILING:
    tokens.pop()
  if tokens[-1:] == ["in"] and len(tokens) > 1:  # of "in total"
    tokens.pop()
  while tokens and tokens[0] in _LEADING:
    tokens.pop(0)
  if not tokens or len(tokens) > _MOST_WORDS:
    return None
  if len(tokens) == 1 and len(tokens[0]) == 1:
    is_unit = words.strip() in ONE_LETTER | {"L"}
    if not as_text or not is_unit:
      return None
  return _ratio(tokens)


def _ratio(tokens: list[str]) -> str | None:
  """`per`, and `a` or `each` between two units, divide."""
  for at, token in enumerate(tokens):
    if 0 < at < len(tokens) - 1 and token in ("per", "a", "an", "each"):
      over = _one(tokens[:at])
      under = _one(tokens[at + 1 :])
      if over is None or under is None:
        return None
      return f"{over}/{under}"
  return _one(tokens)


def _one(tokens: list[str]) -> str | None:
  """A unit with its power and the adjectives before it."""
  power = ""
  tokens = list(tokens)
  if tokens[0] in _BEFORE and len(tokens) > 1:
    power = _POWERS[tokens.pop(0)]
  elif (tokens[-1][0] == "^" or tokens[-1] in ("squared", "cubed")) and len(tokens) > 1:
    last = tokens.pop()
    power = _POWERS.get(last, last)
  *adjectives, noun = tokens
  name = _name(noun)
  if name is None:
    return None
  for word in adjectives:
    if word not in _DESCRIPTIVE and _name(word) is None:
      return None
  described = " ".join([*adjectives, name])
  return _COMPOUND.get(described, described) + power


def _name(word: str) -> str | None:
  """The canonical name of a noun, singular or plural."""
  if word in _CANONICAL:
    return _CANONICAL[word]
  if word in _IRREGULAR:
    return _IRREGULAR[word]
  for ending, singular in (("", ""), ("s", ""), ("es", ""), ("ies", "y")):
    if word.endswith(ending):
      stem = word[: len(word) - len(ending)] + singular
      if stem in _COUNTED:
        return stem
      if ending == "s" and len(stem) > 1 and stem in _CANONICAL:
        return _CANONICAL[stem]
  return None
