import subprocess

import pytest

from synthjax import files, locks


def test_a_torn_last_line_is_repaired_reported_and_not_counted(tmp_path):
  path = tmp_path / "j.jsonl"
  lines = []
  with files.Journal(path, lines.append) as journal:
    journal.append({"a": 1}, {"a": 2})
  with open(path, "ab") as f:
    f.write(b'{"a": 3')
  with files.Journal(path, lines.append) as journal:
    assert journal.rows == [{"a": 1}, {"a": 2}]
    journal.append({"a": 4})
  assert "torn last line of 7 bytes" in lines[0]
  assert [r["a"] for r in files.read_jsonl(path)] == [1, 2, 4]


def _read_journal(path, keep):
  with files.Journal(path, keep=keep) as journal:
    return list(journal.read())


def test_a_malformed_line_within_a_journal_is_named_with_a_command_that_removes_it(tmp_path):
  path = tmp_path / "j.jsonl"
  path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}\n\xff\x00\n[4]\n{"a": 5}\n')
  for keep in (True, False):
    with pytest.raises(files.DataError, match="j.jsonl, line 2, 4, 5: not a JSON object") as error:
      _read_journal(path, keep)
  command = str(error.value).split("`")[1]
  subprocess.run(["bash", "-c", command], check=True)
  with files.Journal(path) as journal:
    assert [row["a"] for row in journal.rows] == [1, 3, 5]
  damaged = (tmp_path / "j.jsonl.damaged").read_bytes()
  assert len(damaged.splitlines()) == 6


def test_two_do_not_write_to_one_journal(tmp_path):
  with files.Journal(tmp_path / "j.jsonl") as journal:
    journal.append({"a": 1})
    message = r"process \d+, since .* is at work on .*j.jsonl: wait for it"
    with pytest.raises(locks.LockError, match=message), files.Journal(tmp_path / "j.jsonl"):
      pass
  with files.Journal(tmp_path / "j.jsonl") as journal:
    assert journal.rows == [{"a": 1}]
  assert [path.name for path in tmp_path.iterdir()] == ["j.jsonl"]


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
