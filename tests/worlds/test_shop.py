import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthjax.config.worlds import World
from synthjax.data.tokenizers import Words
from synthjax.worlds import shop

worlds = st.builds(
  World,
  leap=st.sampled_from([0.0, 0.6, 1.0]),
  verbs=st.integers(4, 12),
  seed=st.integers(0, 99),
  zipf=st.sampled_from([0.0, 1.0]),
  largest=st.integers(9, 40),
)


@settings(max_examples=20, deadline=None)
@given(worlds)
def test_teacher_traces_are_right_and_their_steps_tile_the_text(world):
  for problem in shop.problems(world, "train", 20):
    trace = shop.teacher_trace(world, problem)
    assert set(shop.judge_steps(problem.question, trace.text)) <= {"right", "leap"}
    assert "".join(trace.text[step.start : step.end] for step in trace.steps) == trace.text
    assert trace.text.endswith(f"Answer: {problem.answer}")


@settings(max_examples=10, deadline=None)
@given(worlds, worlds)
def test_splits_share_no_problem_whatever_seed_and_knobs(one, other):
  questions = {
    split: {p.question for w in (one, other) for p in shop.problems(w, split, 50)}
    for split in shop.SPLITS
  }
  assert sum(map(len, questions.values())) == len(set().union(*questions.values()))


def test_leaps_come_with_the_probability_asked_for():
  world = World(min_events=2, max_events=2)
  problems = shop.problems(world, "train", 2000)
  share = sum(shop.teacher_trace(world, p).steps[0].leap for p in problems) / len(problems)
  assert abs(share - world.leap) < 0.04
  none = dataclasses.replace(world, leap=0.0)
  assert not any(step.leap for p in problems for step in shop.teacher_trace(none, p).steps)


def test_a_longer_list_begins_with_the_shorter_one_and_repeats_nothing():
  world = World()
  few, many = shop.problems(world, "train", 30), shop.problems(world, "train", 90)
  assert many[:30] == few and len({p.id for p in many}) == 90


def test_an_exhausted_split_says_how_many_problems_it_has():
  with pytest.raises(ValueError, match="about .* distinct problems; 100000 were asked for"):
    shop.problems(World(largest=4, operand=2, max_events=2, verbs=1, base_verbs=1), "test", 100_000)


def test_words_are_single_tokens_and_a_problem_with_its_trace_takes_at_most_45():
  world = World()
  words = Words(shop.vocabulary(world))
  for problem in shop.problems(world, "train", 300):
    text = problem.question + " " + shop.teacher_trace(world, problem).text
    ids = words.encode(text)
    assert words.decode(ids) == text and len(ids) <= 45


def test_wrong_lines_are_seen():
  problem = shop.problems(World(), "train", 1)[0]
  start, events, _ = shop.parse(problem.question)
  assert (
    shop.judge_steps(problem.question, f"{start} + 99 = {start + 99} ; Answer: 3")[0] == "wrong"
  )
  assert len(events) >= 2
