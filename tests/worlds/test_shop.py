import dataclasses
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthjax.config.worlds import World
from synthjax.data.tokenizers import Words
from synthjax.worlds import shop

SYMBOLS = {1: "+", -1: "-"}
recounting = st.builds(
  World,
  leap=st.just(0.0),
  recount=st.sampled_from([0.2, 0.5, 1.0]),
  box=st.sampled_from([1, 2]),
  verbs=st.integers(4, 20),
  seed=st.integers(0, 99),
)
worlds = recounting | st.builds(
  World,
  leap=st.sampled_from([0.0, 0.6, 1.0]),
  verbs=st.integers(4, 12),
  seed=st.integers(0, 99),
  zipf=st.sampled_from([0.0, 1.0]),
  largest=st.integers(9, 40),
)


@settings(max_examples=20, deadline=None)
@given(worlds)
def test_teacher_traces_are_correct_and_their_steps_tile_the_text(world):
  for problem in shop.problems(world, "train", 20):
    trace = shop.teacher_trace(world, problem)
    verdicts = shop.judge_steps(problem.question, trace.text)
    lines = [trace.text[step.start : step.end] for step in trace.steps]
    assert set(verdicts) <= {"right", "leap"}
    assert "".join(lines) == trace.text
    assert trace.text.endswith(f"Answer: {problem.answer}")


@settings(max_examples=10, deadline=None)
@given(worlds, worlds)
def test_splits_share_no_problem_whatever_seed_and_knobs(one, other):
  splits_of = {}
  for split in shop.SPLITS:
    for world in (one, other):
      for problem in shop.problems(world, split, 50):
        splits_of.setdefault(problem.question, set()).add(split)
  assert all(len(splits) == 1 for splits in splits_of.values())


def test_leaps_come_with_the_probability_asked_for():
  world = World(min_events=2, max_events=2)
  problems = shop.problems(world, "train", 2000)
  never = dataclasses.replace(world, leap=0.0)
  leaps = 0
  for problem in problems:
    leaps += shop.teacher_trace(world, problem).steps[0].leap
    assert not any(step.leap for step in shop.teacher_trace(never, problem).steps)
  assert abs(leaps / len(problems) - world.leap) < 0.04


def test_a_longer_list_begins_with_the_shorter_one_and_repeats_nothing():
  world = World()
  many = shop.problems(world, "train", 90)
  assert many[:30] == shop.problems(world, "train", 30)
  assert len({problem.id for problem in many}) == 90


def test_an_exhausted_split_says_how_many_problems_it_has():
  small = World(largest=4, operand=2, max_events=2, verbs=1, base_verbs=1)
  with pytest.raises(ValueError, match="about .* distinct problems; 100000 were asked for"):
    shop.problems(small, "test", 100_000)


def test_words_are_single_tokens_and_a_problem_with_its_trace_takes_at_most_45():
  world = World()
  words = Words(shop.vocabulary(world))
  for problem in shop.problems(world, "train", 300):
    trace = shop.teacher_trace(world, problem)
    text = f"{problem.question} {trace.text}"
    ids = words.encode(text)
    assert words.decode(ids) == text
    assert len(ids) <= 45


def test_incorrect_lines_are_seen():
  question = shop.problems(World(), "train", 1)[0].question
  start, events, _ = shop.parse(question)
  assert len(events) >= 2
  text = f"{start} + 99 = {start + 99} ; Answer: 3"
  assert shop.judge_steps(question, text)[0] == "wrong"


def test_a_misreading_before_the_recount_is_harmless_and_a_single_one_after_it_never():
  num_correct = num_harmless = 0
  for problem in shop.problems(shop.LUCK, "train", 500):
    events = shop.parse(problem.question).events
    recount = [event.sign for event in events].index(0)
    trace = shop.teacher_trace(shop.LUCK, problem)
    lines = trace.text.split(" ; ")
    assert lines[recount] == f"has {events[recount].amount}"
    misread = []
    for number, event in enumerate(events):
      if number == recount:
        continue
      _, symbol, *_ = lines[number].split()
      if symbol != SYMBOLS[event.sign]:
        misread.append(number)
    misread_after = sum(number > recount for number in misread)
    correct = trace.text.endswith(f"Answer: {problem.answer}")
    # Two misreadings after the recount may cancel.
    if misread_after < 2:
      assert correct == (misread_after == 0)
    num_correct += correct
    num_harmless += correct and bool(misread)
  assert 150 < num_correct < 300
  assert num_harmless > num_correct / 2


def test_half_of_the_events_come_before_the_recount_where_half_was_asked_for():
  before = total = 0
  for problem in shop.problems(shop.LUCK, "train", 1000):
    signs = [event.sign for event in shop.parse(problem.question).events]
    before += signs.index(0)
    total += len(signs) - 1
    assert signs.count(0) == 1
    assert signs[-1] != 0
  assert abs(before / total - shop.LUCK.recount) < 0.03


def test_lines_of_a_recount_are_judged():
  question = "A shop has 11 apples . gets 2 . has 20 . sells 5 . ?"
  correct = "11 + 2 = 13 ; has 20 ; 20 - 5 = 15 ; Answer: 15"
  assert shop.judge_steps(question, correct) == ["right"] * 4
  for line in ("has 13", "has 21", "13 + 0 = 13", "13 + 20 = 33", "20 + 0 = 20"):
    text = correct.replace("has 20", line)
    assert shop.judge_steps(question, text)[1] == "wrong", line
  early = correct.replace("11 + 2 = 13", "has 20")
  assert shop.judge_steps(question, early)[:2] == ["wrong", "right"]
  assert shop.computation(question) == (11, 2, 0, 20, -5)


def test_worlds_without_a_recount_are_what_they_were():
  """Digests of problems and traces from before there were recounts."""
  digests = []
  for world in (World(), shop.FACTS):
    digest = hashlib.sha256()
    for problem in shop.problems(world, "train", 100):
      trace = shop.teacher_trace(world, problem)
      digest.update(f"{problem.question} {trace.text}".encode())
    digests.append(digest.hexdigest()[:16])
  assert digests == ["b95b672929b1de9c", "9a7a247703b67435"]
