import pytest

from synthjax import files


def test_a_torn_last_line_is_repaired_said_and_not_counted(tmp_path):
  path, said = tmp_path / "j.jsonl", []
  with files.Journal(path, said.append) as journal:
    journal.append({"a": 1}, {"a": 2})
  with open(path, "ab") as f:
    f.write(b'{"a": 3')
  with files.Journal(path, said.append) as journal:
    assert journal.rows == [{"a": 1}, {"a": 2}]
    journal.append({"a": 4})
  assert "torn last line of 7 bytes" in said[0]
  assert [r["a"] for r in files.read_jsonl(path)] == [1, 2, 4]


def test_a_malformed_line_is_named_by_file_and_number(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text('{"a": 1}\n\n{bad\n')
  with pytest.raises(files.DataError, match=r"x\.jsonl, line 3: not JSON"):
    list(files.read_jsonl(path))


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_rows_come_back_as_they_were_written(tmp_path, name):
  rows = [{"text": "é\n\u2028", "n": i} for i in range(5)]
  assert files.write_jsonl(tmp_path / name, rows) == 5
  assert list(files.read_jsonl(tmp_path / name)) == rows
  assert list(files.read_jsonl(tmp_path / name, 2)) == rows[:2]


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path):
  path = tmp_path / "x.json"
  files.write_json(path, [1])
  with pytest.raises(TypeError):
    files.write_json(path, [object()])
  assert files.read_json(path) == [1]
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
