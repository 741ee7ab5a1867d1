"""Files that are never half-written.

Whole files are replaced atomically, JSONL errors name their line, and journals only grow.
"""

import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from synthjax import locks
from synthjax.errors import Error

Path = str | os.PathLike


class DataError(Error, ValueError):
  """Input that cannot be used.

  The message names the file, what was found, what was expected and what to do.
  """


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO]:
  """Yields a file that replaces `path` when the block succeeds; otherwise `path` is left alone.

  A name that ends in `.gz` is compressed; its bytes depend on the content alone (no time stamp is
  stored).
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as raw:
      # mkstemp makes files that nobody else may read.
      os.fchmod(raw.fileno(), 0o644)
      with contextlib.ExitStack() as layers:
        stream: Any = raw
        if path.suffix == ".gz":
          stream = gzip.GzipFile("", "wb", fileobj=raw, mtime=0)
          layers.callback(stream.close)
        if "b" not in mode:
          stream = layers.enter_context(_text(stream))
        yield stream
      # On disk before the name points to it: a crash leaves the old file or the new one.
      raw.flush()
      os.fsync(raw.fileno())
    os.replace(scratch, path)
  except BaseException:
    pathlib.Path(scratch).unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def _text(stream):
  """A UTF-8 writer over `stream` that leaves `stream` open: whoever opened it closes it."""
  writer = io.TextIOWrapper(stream, encoding="utf-8", newline="\n", write_through=False)
  try:
    yield writer
  finally:
    writer.flush()
    writer.detach()


def without_nan(value: Any) -> Any:
  """A JSON value with null for every number that is not finite: JSON has no NaN."""
  if isinstance(value, Mapping):
    return {name: without_nan(part) for name, part in value.items()}
  if isinstance(value, Sequence) and not isinstance(value, str):
    return [without_nan(part) for part in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_json(path: Path, value: Any) -> None:
  """Writes `value` as readable JSON, atomically."""
  with replacing(path) as f:
    json.dump(value, f, indent=2, ensure_ascii=False)
    f.write("\n")


def read_json(path: Path) -> Any:
  """Reads one JSON file. Raises DataError with the file's name when it is missing or malformed."""
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except FileNotFoundError as e:
    raise DataError(f"{path}: no such file") from e
  except ValueError as e:
    raise DataError(f"{path}: not JSON ({e})") from e


def dump_line(value: Any) -> str:
  """One JSONL line: compact, stable key order as given, no line break inside."""
  return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def open_text(path: Path) -> IO[str]:
  """Opens plain or gzipped UTF-8 text for reading."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise DataError(
      f"{path}: no such file; give the path of an existing file "
      "(set SYNTHJAX_DATA to move ../shared/data)"
    )
  if path.suffix == ".gz":
    return gzip.open(path, "rt", encoding="utf-8")
  return open(path, encoding="utf-8")


def read_jsonl(path: Path, limit: int | None = None) -> Iterator[dict]:
  """Yields the objects of a JSONL file (optionally gzipped), at most `limit` of them.

  Raises:
    DataError: the file is missing, a line is not a JSON object (named by number), or the text is
      not UTF-8 or gzip.
  """
  count = 0
  with open_text(path) as f:
    lines = enumerate(f, 1)
    while limit is None or count < limit:
      try:
        number, line = next(lines)
      except StopIteration:
        return
      except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, OSError) as e:
        raise DataError(f"{path}: unreadable after line {count}: {e}") from e
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except ValueError as e:
        raise DataError(
          f"{path}, line {number}: not JSON ({e}); the line begins {line[:60]!r}"
        ) from e
      if not isinstance(row, dict):
        raise DataError(
          f"{path}, line {number}: expected a JSON object, found {type(row).__name__}"
        )
      count += 1
      yield row


def write_jsonl(path: Path, rows: Iterable[dict]) -> int:
  """Writes `rows` as JSONL, atomically; gzipped when the name ends in .gz.

  Returns the number of rows.
  """
  count = 0
  with replacing(path) as f:
    for row in rows:
      f.write(dump_line(row))
      count += 1
  return count


def file_hash(path: Path) -> str:
  """SHA-256 of a file's bytes.

  Of a folder: of the names and bytes of its files in name order, without hidden ones.
  """
  path = pathlib.Path(path)
  digest = hashlib.sha256()
  if path.is_dir():
    visible = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    for file in sorted(visible):
      digest.update(str(file.relative_to(path)).encode())
      digest.update(file_hash(file).encode())
    return digest.hexdigest()
  if not path.is_file():
    raise DataError(f"{path}: no such file")
  with open(path, "rb") as f:
    while block := f.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()


def value_hash(value: Any) -> str:
  """SHA-256 of a JSON value, independent of the order of keys."""
  text = json.dumps(value, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()


class Journal:
  """An append-only JSONL file that survives a kill.

  When `append` returns, its rows are with the operating system; `sync` waits for the disk. There is
  one writer at a time: opening takes a lock beside the file. Opening also repairs a torn last line
  (cut off by a kill or a full disk): the line is removed, reported through `say`, and never
  counted. A malformed line anywhere else is an error that says how to remove it.

  Use as a context manager. `rows` are those found on opening and those appended.

  Args:
    path: of the file.
    say: prints a line.
    keep: `rows` holds the rows; otherwise they are only on disk, and `read` reads them.
    locked: False where the caller makes sure that nobody else opens the journal.

  Raises:
    LockError: another process writes to it.
    DataError: a malformed line.
  """

  def __init__(
    self, path: Path, say: Callable[[str], None] = print, keep: bool = True, locked: bool = True
  ):
    self.path = pathlib.Path(path)
    self.keep = keep
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
      if locked:
        advice = f"{self.path}: wait for it or stop it, or write to another file"
        held.enter_context(locks.lock(locks.beside(self.path), "a run of synthjax", advice))
      if self.path.exists():
        self._repair(say)
      self.rows: list[dict] = []
      if keep:
        self.rows = list(self.read())
      # Unbuffered: `append` is one system call.
      self._file = held.enter_context(open(self.path, "ab", buffering=0))
      self._held = held.pop_all()

  def read(self) -> Iterator[dict]:
    """The rows on disk.

    Raises DataError for malformed lines, with all their numbers and the command that removes them.
    """
    if not self.path.exists():
      return
    with open(self.path, "rb") as lines:
      for number, line in enumerate(lines, 1):
        if line.isspace():
          continue
        row = _row(line)
        if row is None:
          raise DataError(self._malformed(number))
        yield row

  def _malformed(self, first: int) -> str:
    """The message for malformed lines from line `first` on."""
    numbers = []
    with open(self.path, "rb") as lines:
      for number, line in enumerate(lines, 1):
        if number >= first and not line.isspace() and _row(line) is None:
          numbers.append(number)
    cut = "".join(f"{number}d;" for number in numbers)
    return (
      f"{self.path}, line {', '.join(map(str, numbers))}: not a JSON object, so the file was "
      f"damaged after it was written; run `sed -i.damaged '{cut}' {self.path}`, which keeps the "
      f"whole file as {self.path.name}.damaged, then the same command again, which does anew what "
      "the lines held"
    )

  def _repair(self, say: Callable[[str], None]) -> None:
    """Removes a torn last line."""
    with open(self.path, "r+b") as f:
      size = end = f.seek(0, os.SEEK_END)
      # Backwards, a block at a time: a journal may be larger than memory.
      while end:
        start = max(0, end - (1 << 20))
        f.seek(start)
        newline = f.read(end - start).rfind(b"\n")
        end = start + newline + 1
        if newline >= 0:
          break
      if end != size:
        say(
          f"{self.path}: removed a torn last line of {size - end} bytes, "
          "written when a run was cut off"
        )
        f.truncate(end)

  def append(self, *rows: dict) -> None:
    """Writes the rows with one system call.

    After a failed write (a full disk) the file ends at its last complete row.
    """
    data = "".join(map(dump_line, rows)).encode()
    start = os.fstat(self._file.fileno()).st_size
    try:
      written = self._file.write(data)
      if written != len(data):
        raise OSError(28, "the disk took only part of the row", str(self.path))
    except OSError:
      os.ftruncate(self._file.fileno(), start)
      raise
    if self.keep:
      self.rows.extend(rows)

  def sync(self) -> None:
    """Waits until the rows have reached the disk."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    self._held.close()

  def __enter__(self) -> "Journal":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _row(line: bytes) -> dict | None:
  """The object of a line of JSONL; None where it is malformed."""
  try:
    row = json.loads(line)
  except ValueError:
    return None
  if not isinstance(row, dict):
    return None
  return row
