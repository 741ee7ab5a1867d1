import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthjax import files, records
from synthjax.records import Pair, Problem, Step, StepValue, Trace, Verdict

text = st.text(max_size=20)
traces = st.builds(
  Trace,
  problem_id=text,
  text=st.just("a b c"),
  steps=st.just((Step(0, 2), Step(2, 5, leap=True))),
  answer=st.none() | text,
  source=text,
  sampler=st.dictionaries(text, st.floats(0, 1)),
  seed=st.none() | st.integers(0, 9),
)
any_record = st.one_of(
  st.builds(
    Problem, id=text, question=text, answer=text, metadata=st.dictionaries(text, st.integers())
  ),
  traces,
  st.sampled_from([Verdict("equal"), Verdict("different"), Verdict("undecided", "timeout")]),
  st.builds(
    StepValue,
    problem_id=text,
    trace=st.integers(0, 9),
    step=st.integers(0, 9),
    n=st.just(8),
    c=st.integers(0, 8),
    q=st.floats(0, 1),
  ),
  st.builds(
    Pair,
    problem_id=text,
    prefix=text,
    chosen=text,
    rejected=text,
    mode=st.sampled_from(["paper", "branch", "step"]),
  ),
)


@given(any_record)
def test_every_record_survives_json(record):
  assert type(record).from_json(record.to_json()) == record


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_files_of_records_come_back_and_a_bad_row_is_named(tmp_path, name):
  written = [Trace("p", "ab", (Step(0, 1), Step(1, 2))), Trace("q", "")]
  assert records.write(tmp_path / name, written) == 2
  assert list(records.read(Trace, tmp_path / name)) == written
  files.write_jsonl(
    tmp_path / name, [{"problem_id": "p", "text": "x"}, {"problem_id": "p", "txt": "x"}]
  )
  with pytest.raises(files.DataError, match=rf"{name}, row 2: Trace: unknown field 'txt'"):
    list(records.read(Trace, tmp_path / name))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Trace("p", "ab", (Step(0, 3),)), r"step 0 spans \[0, 3\)"),
    (lambda: Trace("p", "ab", (Step(0, 2), Step(1, 2))), "step 1 spans"),
    (lambda: Verdict("maybe"), "expected one of equal, different, undecided"),
    (lambda: Verdict("undecided"), "has a reason"),
    (lambda: StepValue("p", 0, 1, n=4, c=5, q=1.0), "c=5 correct out of n=4"),
  ],
)
def test_records_that_cannot_be_are_refused(make, message):
  with pytest.raises(files.DataError, match=message):
    make()
