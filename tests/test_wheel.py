"""What `pip install .` gives, without the repository around it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
BUILT_FROM = (
  "synthjax",
  "data",
  "pyproject.toml",
  "setup.py",
  "README.md",
  "LICENSE",
  "requirements.txt",
)


def _run(arguments, folder, **variables):
  environment = {**os.environ}
  environment.pop("PYTHONPATH", None)
  environment |= variables
  done = subprocess.run(
    [sys.executable, *map(str, arguments)],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def test_an_installed_wheel_has_the_worked_examples_and_the_base_policy_and_needs_no_checkout(
  tmp_path,
):
  source, installed, empty = tmp_path / "source", tmp_path / "installed", tmp_path / "empty"
  empty.mkdir()
  source.mkdir()
  # Of a copy, since building leaves files behind.
  for name in BUILT_FROM:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, source / name)
    else:
      shutil.copy(ROOT / name, source / name)
  pip = ("-m", "pip", "--disable-pip-version-check", "-q")
  _run(
    [*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path], source
  )
  (wheel,) = tmp_path.glob("*.whl")
  _run([*pip, "install", "--no-deps", "--no-index", "--target", installed, wheel], empty)
  shutil.copy(ROOT / "configs/world_sft.py", empty / "mine.py")

  here = {"PYTHONPATH": str(installed)}
  assert "run the stages of a recipe in order" in _run(["-m", "synthjax", "--help"], empty, **here)
  rows = [{"id": "1", "gold": "4", "question": "2 + 2?", "responses": ["The answer is 4."]}]
  (empty / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  evaluating = [
    "-m",
    "synthjax",
    "evaluate",
    "--config",
    "mine.py:smoke",
    "--workdir",
    "work",
    "--generations",
    "answers.jsonl",
  ]
  assert "accuracy 100.00" in _run(
    [*evaluating, "--config.evaluate.protocol=gsm8k_strict"], empty, **here
  )
  scored = json.loads((empty / "work/evaluate_generations/results.json").read_text())
  assert scored["prompt"].count("\nA:") == 8 + 1
  assert scored["prompt"].startswith("Q: There are 15 trees")
  config = _run(["-m", "synthjax", "config", "--config", "mine.py:smoke"], empty, **here)
  (init,) = [line for line in config.splitlines() if line.startswith("train.init")]
  assert str(installed) in init
  base_policy = installed / "synthjax/shipped_data/base_policy"
  assert list(base_policy.iterdir())
  benching = "from synthjax.bench import pits; print(pits.of_the_world().train.init)"
  assert str(installed) in _run(["-c", benching], empty, **here)
