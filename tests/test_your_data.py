"""The page for new users: every command on it, on files of its own."""

import json
import pathlib
import re
import shlex
import shutil

import jax
import pytest

from synthjax import __main__, __version__, files, shipped

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs/your_data.md").read_text(encoding="utf-8")
# Less of everything; the commands are the page's.
SMALL = {
  "sft": ["--config.train.steps=4", "--config.evaluate.before=False"],
  "pretrain": [
    "--config.train.steps=4",
    "--config.train.eval_every=2",
    "--config.train.checkpoint_every=2",
  ],
  "study": [
    "--config.train.epochs=1",
    "--config.study.rft.epochs=1",
    "--config.study.arms=('sft','rft')",
    "--config.study.sampling.max_tokens=8",
    "--config.evaluate.max_new_tokens=8",
  ],
}
LEFT = {
  "sft": ["answers.jsonl", "runs/my_sft/evaluate_after/responses.jsonl"],
  "pretrain": ["runs/my_base"],
  "study": [
    "runs/my_study/multiples.png",
    "runs/my_study/evaluate_arm/n00024_s0/rft/responses.jsonl",
  ],
}


@pytest.fixture(autouse=True)
def _compiled_fast():
  """Compiles without optimisations: the compiler takes nearly all the time."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def _users_files(folder):
  examples = shipped.folder("examples")
  shutil.copy(examples / "problems_train.jsonl", folder / "train.jsonl")
  shutil.copy(examples / "problems_test.jsonl", folder / "test.jsonl")
  shutil.copy(examples / "stories.jsonl", folder / "web.jsonl")
  shutil.copy(examples / "sums.jsonl", folder / "books.jsonl")
  shutil.copy(examples / "stories_held_out.jsonl", folder / "held_out.jsonl")
  (request,) = re.findall(r'^    (\{"id": "1", "prompt".*)$', PAGE, re.M)
  (folder / "requests.jsonl").write_text(request + "\n")


@pytest.mark.parametrize(
  ("starter", "block"), zip(SMALL, re.findall(r"```sh\n(.*?)```", PAGE, re.S)), ids=SMALL
)
def test_the_three_commands_of_the_page_run(starter, block, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  _users_files(tmp_path)
  commands = [shlex.split(line) for line in block.splitlines()]
  assert len(commands) == 3
  init = ["synthjax", "init", "--from", starter, f"my_{starter}.py"]
  assert commands[0] == init
  for command in commands:
    program, *arguments = command
    assert program == "synthjax"
    if command != init:
      arguments += SMALL[starter]
    assert __main__.main(arguments) == 0, capsys.readouterr()
  for path in LEFT[starter]:
    assert (tmp_path / path).exists()


@pytest.mark.parametrize("starter", SMALL)
def test_a_starter_is_a_config_and_says_its_own_name(starter, tmp_path, capsys):
  path = tmp_path / "mine.py"
  command = ["init", "--from", starter, str(path)]
  assert __main__.main(command) == 0
  assert f"synthjax run --config {path}" in capsys.readouterr().out
  assert f"--config {path} --workdir runs/my_{starter}" in path.read_text()
  assert __main__.main(["config", "--config", str(path)]) == 0
  assert f"name = 'my_{starter}'" in capsys.readouterr().out
  written = path.read_text()
  assert __main__.main(command) == 1
  assert "exists already, and nothing was written" in capsys.readouterr().err
  assert path.read_text() == written


def test_the_row_that_the_page_shows_has_the_keys_of_the_task():
  (shown,) = re.findall(r'^    (\{"question".*)$', PAGE, re.M)
  (example,) = files.read_jsonl(shipped.folder("examples") / "problems_train.jsonl", 1)
  assert json.loads(shown).keys() == example.keys() - {"id"}


def test_the_version_is_printed(capsys):
  with pytest.raises(SystemExit) as ended:
    __main__.main(["--version"])
  assert ended.value.code == 0
  assert capsys.readouterr().out == f"synthjax {__version__}\n"
