import errno
import os
import pathlib
import subprocess
import sys

import pytest

from synthjax import __main__, cli, config, errors

CONFIG = ["config", "--config", "configs/world_sft.py"]


@pytest.fixture(autouse=True)
def _root(monkeypatch, request):
  monkeypatch.chdir(request.config.rootpath)


def test_a_key_without_its_value_ends_with_a_hint_at_the_equals_sign(capsys):
  with pytest.raises(SystemExit) as stopped:
    __main__.main([*CONFIG, "--config.train.steps", "5"])
  assert stopped.value.code == 2
  assert "--config.train.steps: expected --config.train.steps=VALUE" in capsys.readouterr().err


def test_only_our_own_errors_are_one_line(capsys, monkeypatch):
  assert __main__.main([*CONFIG, "--config.train.steps=-1"]) == 1
  assert capsys.readouterr().err == "synthjax: config.train.steps is -1; expected int, at least 0\n"

  def broken(parsed, overrides):
    raise ValueError("jax says so")

  monkeypatch.setattr(cli.inspect, "show_config", broken)
  with pytest.raises(ValueError, match="jax says so"):
    __main__.main(CONFIG)


def test_a_work_folder_that_cannot_be_written_is_reported_in_one_line_before_anything_is_read(
  capsys, tmp_path, monkeypatch
):
  (tmp_path / "file").write_text("in the way")
  run = [
    "run",
    "--config",
    "configs/gsm8k_sft.py:smoke",
    "--config.data.folder=nowhere",
    "--workdir",
  ]
  assert __main__.main([*run, str(tmp_path / "file/run")]) == 1
  message = f"{tmp_path / 'file'}: is a file; expected a folder, choose another --workdir"
  assert capsys.readouterr().err == f"synthjax: {message}\n"

  def full(*_):
    # As the kernel reports it.
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(pathlib.Path, "write_text", full)
  run[2] = "configs/world_sft.py:smoke"
  assert __main__.main([*run, str(tmp_path / "run")]) == 1
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  assert error.startswith(f"synthjax: {tmp_path / 'run/.lock'}: No space left on device; ")
  assert not (tmp_path / "run").exists()


def test_a_missing_file_is_reported_before_jax_is_loaded():
  code = (
    "import sys; from synthjax import __main__; code = __main__.main(sys.argv[1:]); "
    "assert code == 1 and 'jax' not in sys.modules"
  )
  run = [
    "run",
    "--config",
    "configs/gsm8k_sft.py:smoke",
    "--config.data.test_path=nowhere.jsonl",
    "--workdir",
    "/nowhere",
  ]
  done = subprocess.run(
    [sys.executable, "-c", code, *run, "--config.data.train_path=README.md"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  message = "synthjax: config.data.test_path is 'nowhere.jsonl': no such file"
  assert done.stderr.startswith(message)


# What ArrayRecord, TensorStore and Python raise.
DISK_ERRORS = [
  (
    RuntimeError("write() failed: No space left on device; writing /w/cache/0.writing; at byte 9"),
    "/w/cache/0.writing",
  ),
  (
    ValueError(
      'RESOURCE_EXHAUSTED: Failed writing: "/w/10/d/96": Failed: No space left on device '
      "[os_error_code]"
    ),
    "/w/10/d/96",
  ),
  (PermissionError(errno.EACCES, "Permission denied", "/w"), "/w"),
]


@pytest.mark.parametrize(("error", "path"), DISK_ERRORS)
def test_an_error_of_the_disk_is_reported_in_one_line_whatever_its_class(error, path):
  message = errors.of_the_disk(error)
  assert message.startswith(f"{path}: ")
  assert "another --workdir" in message


def test_other_errors_are_not_taken_for_errors_of_the_disk():
  assert errors.of_the_disk(ValueError("shapes differ")) == ""
  # A mistake of ours, which keeps its traceback.
  assert errors.of_the_disk(FileNotFoundError(errno.ENOENT, "no such file", "/w")) == ""


def test_every_error_of_ours_is_printed_in_one_line():
  # Imported for their subclasses: the rooms that raise errors of their own.
  from synthjax import multihost, recipes  # noqa: F401
  from synthjax.rollout import remote  # noqa: F401

  ours = []
  for base in (ValueError, RuntimeError):
    ours += [cls for cls in base.__subclasses__() if cls.__module__.startswith("synthjax.")]
  assert len(ours) > 8
  assert not [cls for cls in ours if not issubclass(cls, errors.Error)]


def test_a_reader_that_has_enough_gets_no_traceback():
  process = subprocess.Popen(
    [sys.executable, "-m", "synthjax", *CONFIG],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.close()
  assert process.stderr.read() == ""
  assert process.wait() == 0


def test_fields_are_explained_without_a_config(capsys):
  assert __main__.main(["config", "--explain", "train.keep"]) == 0
  assert "train.keep = 2: int, at least 1" in capsys.readouterr().out


def test_variants_are_those_that_the_file_declares(tmp_path):
  def written(text):
    path = tmp_path / "own.py"
    path.write_text("import ml_collections\n" + text)
    return str(path)

  with pytest.raises(
    config.ConfigError, match="no such variant; the file has smoke, 7b; did you mean 'smoke'"
  ):
    config.read("configs/gsm8k_math_rl.py:smok")
  plain = written("def get_config():\n  return ml_collections.ConfigDict({'name': 'plain'})\n")
  assert config.read(plain).name == "plain"
  with pytest.raises(
    config.ConfigError, match=r"the file has no variants; .* VARIANTS = \('smoke',\)"
  ):
    config.read(plain + ":smoke")
