import itertools
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthjax import files
from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.credit import steps
from synthjax.data import tokenizers
from synthjax.worlds import shop

WORLD = World()
LIMIT = 1000
# Every kind of formula with a plain pattern of its own: an oracle that shares nothing with the
# one-pass scanner.
FORMULAS = re.compile(
  r"\[asy\].*?\[/asy\]|\\begin\{(\w+\*?)\}.*?\\end\{\1\}|\\\[.*?\\\]|\\\(.*?\\\)"
  r"|(?<!\\)\$\$.*?(?<!\\)\$\$|(?<!\\)\$(?:\\.|[^$\\])*\$",
  re.DOTALL,
)


def _texts(text, rule, limit=LIMIT):
  return [text[start:end] for start, end in steps.spans(text, rule, limit)]


def _check(text, rule, limit):
  """The steps, after a look at what holds for every text."""
  found = _texts(text, rule, limit)
  assert "".join(found) == text
  assert len(found) <= limit and all(step.strip() for step in found) or not text.strip()
  return found


def _rows(shared_data, name, field):
  return [row[field] for row in files.read_jsonl(shared_data / name)]


def test_every_gsm8k_solution_is_its_lines(shared_data):
  for text in _rows(shared_data, "gsm8k/train.jsonl", "answer"):
    found = _check(text, "gsm8k", 32)
    assert 2 <= len(found) <= 14 and found[-1].startswith("#### ")
    assert [step.rstrip() for step in found] == [
      line.rstrip() for line in text.split("\n") if line.strip()
    ]


def test_every_math_solution_is_cut_outside_its_formulas(shared_data):
  texts, counts = _rows(shared_data, "math/train.jsonl", "solution"), []
  for text in texts:
    found = _check(text, "math", LIMIT)
    counts.append(len(found))
    inside = {
      place
      for formula in FORMULAS.finditer(text)
      for place in range(formula.start() + 1, formula.end())
    }
    # Two solutions of the 7,500 write $120 for dollars.
    unmatched = re.sub(r"\\.", "", FORMULAS.sub("", text))
    odd = unmatched.count("$")
    assert odd or not inside & set(itertools.accumulate(map(len, found[:-1])))
    assert all(len(step.strip()) >= 12 for step in found) or len(found) == 1
  assert len(counts) == 7500 and max(counts) < 60
  assert sorted(counts)[3750] == 4, "a median solution has four steps"
  assert sum(count <= 32 for count in counts) > 0.999 * len(counts)


def test_the_answers_of_models_are_split_too(shared_data):
  answers = [
    text
    for codes in _rows(shared_data, "llm_generated/qwen_math_cot_100.jsonl", "code")
    for text in codes
  ]
  answers += _rows(
    shared_data, "llm_generated/openmathinstruct2_sample.jsonl", "generated_solution"
  )
  counts = [len(_check(text, "math", 32)) for text in answers]
  assert len(counts) > 800 and 5 < sum(counts) / len(counts) < 15
  for row in files.read_jsonl(shared_data / "llm_generated/gsm8k_example_model_solutions.jsonl"):
    for text in (value["solution"] for value in row.values() if isinstance(value, dict)):
      assert len(_check(text, "gsm8k", 32)) >= 1


def test_a_text_cut_after_a_step_has_the_same_steps(shared_data):
  for text in _rows(shared_data, "math/train.jsonl", "solution")[::5]:
    found = steps.spans(text, "math", 8)
    for last in (1, len(found) // 2, len(found) - 1):
      assert last < 1 or steps.spans(text[: found[last - 1][1]], "math", 8) == found[:last]


def test_a_second_is_enough_for_thousands_of_solutions_and_for_no_end_of_nonsense(shared_data):
  texts = _rows(shared_data, "math/train.jsonl", "solution")[:3000]
  nonsense = [
    "$" * 100_000,
    "\\[{" * 30_000 + "\\]}" * 100,
    "{" * 100_000 + "\\)" * 50_000,
    "e.g. " * 20_000,
    ". " + " " * 100_000,
    "x\n" + " \n" * 50_000,
    "Mr. A)" * 20_000,
    "\\begin{a}" * 10_000,
    ".)" * 50_000,
  ]
  for batch in (texts, *([text] for text in nonsense)):
    start = time.process_time()
    for text in batch:
      steps.spans(text, "math", 32)
    assert time.process_time() - start < 2  # 0.2 s measured


def test_steps_of_the_world_are_those_of_its_teacher():
  for problem in shop.problems(WORLD, "train", 200):
    for trace in (shop.teacher_trace(WORLD, problem), shop.clean_trace(problem)):
      assert steps.spans(trace.text, "world", 32) == [
        (step.start, step.end) for step in trace.steps
      ]
  assert _texts("1 + 2 = 3 ; 3 -", "world") == ["1 + 2 = 3 ; ", "3 -"]
  assert _texts("; ; ", "world") == ["; ", "; "]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (
      "We have $x = 3.5$ as the root. Thus $y = 2$.",
      ["We have $x = 3.5$ as the root.", " Thus $y = 2$."],
    ),
    (
      "The value is 3.5 and so on. Then we stop here.",
      ["The value is 3.5 and so on.", " Then we stop here."],
    ),
    (
      "Take any prime, e.g. 7, or i.e. $p$, etc. The rest follows.",
      ["Take any prime, e.g. 7, or i.e. $p$, etc. The rest follows."],
    ),
    (r"It costs \$3. Then \$5 more is needed.", [r"It costs \$3.", r" Then \$5 more is needed."]),
    (
      r"The sum is $a. B + c.$ Hence we are done.",
      [r"The sum is $a. B + c.$", " Hence we are done."],
    ),
    (
      r"We find \(a. B\) twice. So \(c\) is small.",
      [r"We find \(a. B\) twice.", r" So \(c\) is small."],
    ),
    (
      "We get\n\\[a = b. C\n\nD\\]\nFrom this it follows.",
      ["We get\n\\[a = b. C\n\nD\\]\n", "From this it follows."],
    ),
    (
      "We get\n\\[a = b\\]so that $c$. Then all is well.",
      ["We get\n\\[a = b\\]so that $c$.", " Then all is well."],
    ),
    ("We compute\n$$a. B$$\nNow to the rest.", ["We compute\n$$a. B$$\n", "Now to the rest."]),
    (
      "We have \\begin{align*}\na &= b. C\\\\[2pt]\nD &= e.\n\\end{align*}\nNow to the rest.",
      ["We have \\begin{align*}\na &= b. C\\\\[2pt]\nD &= e.\n\\end{align*}\n", "Now to the rest."],
    ),
    (
      'The picture:\n[asy]\ndraw(A); label("$A. B$");\n\nDraw(B);\n[/asy]\nNow to the rest.',
      ['The picture:\n[asy]\ndraw(A); label("$A. B$");\n\nDraw(B);\n[/asy]\n', "Now to the rest."],
    ),
    (
      "So it is \\boxed{12. Or so} in the end. That is the answer.",
      ["So it is \\boxed{12. Or so} in the end.", " That is the answer."],
    ),
    (
      "1. Add the two sides.\n2. Divide them by two.\n",
      ["1. Add the two sides.\n", "2. Divide them by two.\n"],
    ),
    (
      "This is a line\nwhich goes on below. So? Yes! It is true indeed.",
      ["This is a line\nwhich goes on below.", " So? Yes! It is true indeed."],
    ),
    (
      "Ann was charged $120 for it.\n\nThen she has no more. Now $x$ is 3.",
      ["Ann was charged $120 for it.\n\n", "Then she has no more.", " Now $x$ is 3."],
    ),
    (
      "Nothing closes this $x. But then. The text goes on all the same.",
      ["Nothing closes this $x.", " But then. The text goes on all the same."],
    ),
    (
      "Here $a. B$$c. D$ are two formulas. Now to the rest.",
      ["Here $a. B$$c. D$ are two formulas.", " Now to the rest."],
    ),
  ],
)
def test_sentences_and_lines_of_mathematics(text, expected):
  assert _texts(text, "math") == expected


def test_the_config_says_the_rule_and_else_the_task():
  tasks = ("world", "gsm8k", "math", "math500", "problems", "traces")
  rules = [steps.rule_of(schema.Data(task=task)) for task in tasks]
  assert rules == ["world", "gsm8k", "math", "math", "gsm8k", "gsm8k"]
  assert steps.rule_of(schema.Data(task="problems", steps="math")) == "math"


def test_the_last_step_takes_what_is_beyond_the_limit():
  assert _texts("a\nb\n\nc\n#### 4", "gsm8k", 3) == ["a\n", "b\n\n", "c\n#### 4"]
  assert (
    _texts("a\nb\n", "gsm8k", 1) == ["a\nb\n"]
    and _texts("", "gsm8k", 1) == []
    and _texts(" \n ", "math", 4) == [" \n "]
  )
  with pytest.raises(ValueError, match="rule 'latex'; expected one of world, gsm8k, math"):
    steps.spans("a", "latex", 3)
  with pytest.raises(ValueError, match="at most 0 steps"):
    steps.spans("a", "math", 0)


@settings(max_examples=200, deadline=None)
@given(
  st.text(st.sampled_from("aB1.!? \n\t$\\[](){};é\U0001f600")),
  st.sampled_from(sorted(steps.RULES)),
  st.integers(1, 5),
)
def test_any_text_is_tiled(text, rule, limit):
  _check(text, rule, limit)


def _load(name, home):
  path, eos = {
    "dolma2": ("dolma2/tokenizer.json", "<|endoftext|>"),
    "deepseek": ("deepseek_r1/tokenizer.json.gz", ""),
    "gpt2": ("gpt2", ""),
    "bytes": ("", ""),
    "t5": ("sentencepiece/seqio_test.model", ""),
    "unigram": ("sentencepiece/test_model.model", ""),
  }[name]
  kind = {"t5": "sentencepiece", "unigram": "sentencepiece"}.get(
    name, name if name in ("gpt2", "bytes") else "hf"
  )
  return tokenizers.load(schema.Tokenizer(kind=kind, path=str(home / path), eos=eos), WORLD)


def _load_sentencepiece(path):
  return tokenizers.load(schema.Tokenizer(kind="sentencepiece", path=str(path)), WORLD)


@pytest.mark.parametrize("name", ["bytes", "gpt2", "dolma2", "deepseek", "t5", "unigram"])
def test_tokens_stay_as_they_were_sampled_and_fall_where_their_text_begins(name, shared_data):
  tokenizer = _load(name, shared_data / "tokenizers")
  solutions = _rows(shared_data, "math/train.jsonl", "solution")[::100]
  straddling = 0
  for solution in solutions:
    ids = tokenizer.encode(solution)
    text = tokenizer.decode(ids)
    spans = steps.spans(text, "math", 32)
    found = steps.token_spans(ids, spans, tokenizer)
    assert [i for step in found for i in step] == list(ids) and all(found)
    assert len(found) == len(spans)
    for last, (_, end) in enumerate(spans, 1):
      upto = tokenizer.decode([i for step in found[:last] for i in step])
      # One token may hold `.]` and what follows.
      assert upto.rstrip() in (text[:end].rstrip(), text[: end + 1].rstrip())
      straddling += upto.rstrip() != text[:end].rstrip()
  assert straddling <= 0.02 * sum(len(steps.spans(solution, "math", 32)) for solution in solutions)


def test_words_of_the_world_fall_into_its_lines():
  words = tokenizers.Words(shop.vocabulary(WORLD))
  for problem in shop.problems(WORLD, "train", 50):
    trace = shop.teacher_trace(WORLD, problem)
    ids = words.encode(" " + trace.text)
    found = steps.token_spans(ids, steps.spans(words.decode(ids), "world", 32), words)
    assert found == [words.encode(trace.text[step.start : step.end]) for step in trace.steps]


def test_a_character_of_several_tokens_is_not_torn():
  tokenizer = tokenizers.Bytes()
  text = "é\U0001f600 €\n\U0001f600é\n#### €"
  found = steps.token_spans(tokenizer.encode(text), steps.spans(text, "gsm8k", 9), tokenizer)
  assert [tokenizer.decode(step) for step in found] == [
    "é\U0001f600 €\n",
    "\U0001f600é\n",
    "#### €",
  ]
  assert steps.token_spans(
    tokenizer.encode("é\U0001f600a"), [(0, 1), (1, 2), (2, 3)], tokenizer
  ) == [[0xC3, 0xA9], list("\U0001f600".encode()), [97]]


def test_pieces_that_fall_back_to_bytes_are_not_torn(tmp_path):
  tokenizers.train_sentencepiece(["3 + 4 = 7\nso it is 7\n" * 20], tmp_path / "m.model", 275)
  tokenizer = _load_sentencepiece(tmp_path / "m.model")
  ids = tokenizer.encode("3 \U0001f600\n\U0001f600\n4 €")
  found = steps.token_spans(ids, steps.spans(tokenizer.decode(ids), "gsm8k", 9), tokenizer)
  assert [tokenizer.decode(step) for step in found] == ["3 \U0001f600\n", "\U0001f600\n", "4 €"]


def test_bytes_that_are_no_text_lose_no_token():
  tokenizer = tokenizers.Bytes()
  ids = [0xF0, 0x9F, *b"one\n", 0xFF, *b"two\n", 0xE2, 0x82]
  found = steps.token_spans(ids, steps.spans(tokenizer.decode(ids), "gsm8k", 9), tokenizer)
  assert found == [[0xF0, 0x9F, *b"one\n"], [0xFF, *b"two\n"], [0xE2, 0x82]]


def test_a_step_in_which_no_token_begins_joins_the_one_before():
  class Pieces:
    def decode(self, ids):
      return "".join(["a\n", "b\nc\nd", "e\n"][i] for i in ids)

  text = "a\nb\nc\nde\n"
  assert steps.token_spans([0, 1, 2], steps.spans(text, "gsm8k", 9), Pieces()) == [[0], [1], [2]], (
    "four lines, three tokens"
  )


def test_steps_of_another_text_are_refused():
  with pytest.raises(
    files.DataError, match="cover 3 characters, the 5 ids decode to 5: 'a\\\\nb\\\\nc'"
  ):
    steps.token_spans(tokenizers.Bytes().encode("a\nb\nc"), [(0, 2), (2, 3)], tokenizers.Bytes())
