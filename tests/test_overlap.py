"""No recipe trains on the problems that it evaluates on, and no id stands for two problems."""

import dataclasses
import json
import pathlib

import pytest

from synthjax import config, files, overlap, recipes, records
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.data import cache, sources, tokenizers
from synthjax.data.formats import Example
from synthjax.math_study import splits
from synthjax.overlap import Document
from synthjax.recipes import finetune
from synthjax.worlds import shop

ROOT = pathlib.Path(__file__).parents[1]
BASE = str(ROOT / "data/base_policy")
WORLD = World()
LONG = (
  "a farmer has twelve red hens and nine white hens and every hen lays two eggs on each day "
  "of the week so how many eggs are there on sunday evening"
)


def _rows(path, *problems, ids=None):
  rows = [
    {"inputs": text, "targets": f"\nAnswer: {number}", "answer": str(number)}
    for number, text in enumerate(problems)
  ]
  for row, name in zip(rows, ids or []):
    row["id"] = name
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_jsonl(path, rows)
  return str(path)


def _sums(first, count):
  return [f"{number} + 1" for number in range(first, first + count)]


def _experiment(train, test, recipe="finetune", **data):
  return config.resolve(
    {
      "recipe": recipe,
      "model": "world_160k",
      "data": {
        "task": "traces",
        "train_path": train,
        "test_path": test,
        "tokenizer": {"kind": "bytes"},
        **data,
      },
      "train": {"steps": 1, "init": BASE},
      "study": {"problems": (20,), "baseline_problems": (40,), "arms": ("sft",)},
      "evaluate": {"answer": "final_line"},
    }
  )


def _example(name, text):
  return Example(name, f"Question: {text}\nAnswer:", " 1", "1", question=text)


@pytest.mark.parametrize(
  ("document", "rule"),
  [
    (Document("t", "e", "another text"), "id"),
    (Document("t", "t", LONG.upper() + "?"), "exact"),
    (Document("t", "t", f"Solve this. {LONG} and more"), "contained"),
    (Document("t", "t", "Question: What is (2 + 2)?\nAnswer:"), "short"),
    (Document("t", "t", "what is 2 + 2"), "exact"),
    (Document("t", "t", "What is 2 - 2?"), None),
    (Document("t", "t", f"{LONG[:70]} {' '.join('word' + 's' * n for n in range(30))}"), None),
  ],
)
def test_a_document_repeats_an_evaluation_problem_by_id_text_or_rule(document, rule):
  evaluation = [_example("e", LONG), _example("f", "What is 2 + 2?")]
  found = overlap.search([document, Document("other", "other", "something else")], evaluation)
  assert [hit.rule for hit in found.hits] == ([rule] if rule else [])
  assert found.report()["documents"] == 2 and found.report()["evaluation_problems"] == 2


@pytest.mark.parametrize(("recipe", "key"), [("finetune", "train_path"), ("math_rl", "train_path")])
def test_training_on_the_test_problems_stops_every_recipe_before_anything_is_cached(
  tmp_path, recipe, key
):
  path = _rows(tmp_path / "own.jsonl", *_sums(0, 100))
  job = jobs.Job(_experiment(path, path, recipe), tmp_path / "run")
  first = (
    r"the first, 'traces-own-(\d+)' in .*/own.jsonl, row (\d+), repeats 'traces-own-test-\1' in "
    r".*/own.jsonl, row \2\)"
  )
  with pytest.raises(
    files.DataError,
    match=r"training documents repeat \d+ of 100 evaluation problems .*by their text; "
    rf"{first}.*config.data.{key}",
  ):
    recipes.part(recipe, "run")(job)
  assert not (tmp_path / "run").exists(), "a refused run leaves nothing"


def test_pairs_about_test_problems_stop_a_preference_training(tmp_path):
  problems = [*shop.problems(WORLD, "train", 3), *shop.problems(WORLD, "test", 2)]
  pairs = [records.Pair(p.id, p.question, " 1 + 1 = 2 ;", " 1 + 1 = 3 ;", "step") for p in problems]
  records.write(tmp_path / "pairs.jsonl", pairs)
  spec = [f"objective.pairs={tmp_path / 'pairs.jsonl'}"]

  def job(*more):
    return jobs.Job(
      config.load(str(ROOT / "configs/world_dpo.py:smoke"), [*spec, *more]), tmp_path / "run"
    )

  message = (
    "2 of 5 training documents repeat 2 of 50 .*by their id.*the first, '4' in .*pairs.jsonl, row "
    "4, .*config.objective.pairs"
  )
  with pytest.raises(files.DataError, match=message):
    recipes.part("preference", "run")(job())
  assert not (tmp_path / "run").exists()
  dropping = job("data.overlap=drop")
  numbered = dict(enumerate(pairs, 1))
  assert sorted(overlap.of_pairs(dropping.experiment, dropping.workdir, numbered)) == [4, 5]
  allowing = job("data.overlap=allow")
  assert overlap.of_pairs(allowing.experiment, allowing.workdir, numbered) == []


def test_what_repeats_is_left_out_and_counted_where_the_config_says_so(tmp_path):
  train = _rows(tmp_path / "train.jsonl", *_sums(0, 10))
  experiment = _experiment(train, _rows(tmp_path / "test.jsonl", *_sums(7, 5)), overlap="drop")
  left_out = overlap.of_documents(experiment, tmp_path)
  assert left_out == {"traces-train-7", "traces-train-8", "traces-train-9"}
  report = json.loads((tmp_path / "decontaminate/manifest.json").read_text())["result"]
  assert (report["documents"], report["evaluation_problems"], report["repeating"]["exact"]) == (
    10,
    5,
    3,
  )
  hits = list(files.read_jsonl(tmp_path / "decontaminate/hits.jsonl"))
  assert [(hit["candidate_place"], hit["evaluation_place"]) for hit in hits] == [
    (f"{train}, row {row}", f"{tmp_path / 'test.jsonl'}, row {row - 7}") for row in (8, 9, 10)
  ]
  source = sources.of_split(experiment.data, "train")[0]
  corpus = sources.Corpus(source, experiment.data, WORLD, tokenizers.Bytes(), left_out)
  counts = cache.cache(corpus, "train", tmp_path / "cache", say=lambda _: None)
  assert counts["documents"] == 7 and counts["dropped"] == {"repeats an evaluation problem": 3}


def test_a_file_for_training_and_one_of_its_name_for_the_test_have_ids_of_their_own(tmp_path):
  train = _rows(tmp_path / "train/own.jsonl", *_sums(0, 5))
  test = _rows(tmp_path / "test/own.jsonl", *_sums(50, 5))
  assert overlap.of_documents(_experiment(train, test), tmp_path / "run") == frozenset()


def test_an_id_that_stands_for_two_problems_stops_the_run_with_both_places(tmp_path):
  _rows(tmp_path / "one/own.jsonl", *_sums(0, 5))
  _rows(tmp_path / "two/own.jsonl", *_sums(50, 5))
  places = (
    r"id 'traces-own-0' stands for two problems, in .*one/own.jsonl, row 1 and in "
    r".*two/own.jsonl, row 1; give"
  )
  with pytest.raises(files.DataError, match=places):
    list(
      sources.examples(
        schema.Data(task="traces", train_path=str(tmp_path / "*/own.jsonl")), WORLD, "train"
      )
    )
  mixture = tuple(
    schema.Source("traces", str(tmp_path / name / "own.jsonl")) for name in ("one", "two")
  )
  with pytest.raises(files.DataError, match=places):
    list(sources.examples(schema.Data(mixture=mixture), WORLD, "train"))
  path = _rows(tmp_path / "three.jsonl", "1 + 1", "1 + 1", "2 + 2", ids=["a", "a", "b"])
  assert (
    len(list(sources.examples(schema.Data(task="traces", train_path=path), WORLD, "train"))) == 3
  ), "two solutions of one problem"


def test_a_study_counts_distinct_problems_and_says_before_training_what_is_there(tmp_path):
  train = _rows(
    tmp_path / "train.jsonl", *_sums(0, 60), *(text.replace(" ", "") + "." for text in _sums(0, 40))
  )
  experiment = _experiment(
    train, _rows(tmp_path / "test.jsonl", *_sums(55, 5)), "math_rl", overlap="drop"
  )
  divided = splits.divided(experiment)
  assert divided.rows == 100 and len(divided.training) + len(divided.development) == 60
  problems = splits.training(experiment, 40)
  assert len({problem.inputs for problem in problems}) == 40
  assert not {problem.inputs for problem in problems} & {*_sums(55, 5)}
  splits.check(experiment, tmp_path / "run", (20, 40))
  report = json.loads((tmp_path / "run/decontaminate/manifest.json").read_text())["result"]
  assert report["rows"] == 100 and report["distinct"] == 60 and report["evaluation_problems"] == 5
  assert report["training"] == 60 - report["development"] - report["repeating"]["exact"]
  with pytest.raises(
    config.ConfigError,
    match=r"asks for 59 problems; task 'traces' has \d+ for training: of 100 rows 40 repeat another"
    r" row, \d+ problems \(a tenth, by hash\) are kept for development, and \d repeat",
  ):
    splits.check(experiment, tmp_path / "more", (20, 59))


def test_the_world_shares_no_problem_and_what_it_computes_twice_is_counted(tmp_path):
  experiment = config.load(
    str(ROOT / "configs/world_sft.py"), ["data.train_problems=2000", "data.test_problems=200"]
  )
  assert overlap.of_documents(experiment, tmp_path) == frozenset()
  report = json.loads((tmp_path / "decontaminate/manifest.json").read_text())["result"]
  training, test = (
    shop.problems(experiment.world, split, count)
    for split, count in (("train", 2000), ("test", 200))
  )
  assert (
    overlap.search(
      (Document(p.id, p.id, p.question) for p in training), overlap.evaluated(experiment)
    ).hits
    == []
  )
  computed = [shop.computation(p.question) for p in training]
  assert (
    report["evaluation_problems_computed_in_training"]
    == sum(shop.computation(p.question) in computed for p in test)
    > 0
  )
  assert shop.computation("A shop has 11 apples . gets 2 . sells 5 . ?") == (11, 2, -5)


def test_the_problems_that_the_gsm8k_study_asks_for_are_there_at_7b(shared_data, tmp_path):
  experiment = config.load(
    str(ROOT / "configs/gsm8k_math_rl.py:7b"), [f"data.folder={shared_data}"]
  )
  splits.check(
    experiment, tmp_path, (*experiment.study.problems, *experiment.study.baseline_problems)
  )


def test_real_gsm8k_is_clean_and_what_math_repeats_is_found_in_seconds(shared_data):
  for task, hits in (("gsm8k", 0), ("math", 147)):
    data = schema.Data(task=task, folder=str(shared_data), tokenizer=schema.Tokenizer(kind="bytes"))
    training, test = (sources.examples(data, WORLD, split) for split in ("train", "test"))
    found = overlap.search(map(overlap.document, training), list(test))
    assert len(found.hits) == hits


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"test_path": "nowhere.jsonl"}, r"config.data.test_path is 'nowhere.jsonl': no such file"),
    ({"train_path": "nowhere.jsonl"}, r"config.data.train_path is 'nowhere.jsonl': no such file"),
    (
      {
        "train_path": "",
        "mixture": ({"task": "world"}, {"task": "traces", "path": "nowhere.jsonl"}),
      },
      r"config.data.mixture\[1\].path is 'nowhere.jsonl': no such file",
    ),
  ],
)
@pytest.mark.parametrize("recipe", ["finetune", "math_rl"])
def test_a_missing_file_is_named_by_its_key_before_anything_is_cached(
  tmp_path, recipe, changes, message
):
  own = {
    name: _rows(tmp_path / f"{name}.jsonl", *_sums(first, 60))
    for name, first in (("train", 0), ("test", 80))
  }
  paths = {"train_path": own["train"], "test_path": own["test"], **changes}
  experiment = _experiment(paths.pop("train_path"), paths.pop("test_path"), recipe, **paths)
  with pytest.raises(files.DataError, match=message):
    recipes.part(recipe, "run")(jobs.Job(experiment, tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_a_protocol_of_another_task_says_whose_problems_it_asks(tmp_path, capsys):
  own = {
    name: _rows(tmp_path / f"{name}.jsonl", *_sums(first, 60))
    for name, first in (("train", 0), ("test", 80))
  }
  experiment = _experiment(own["train"], own["test"], folder=str(tmp_path))
  experiment = dataclasses.replace(
    experiment, evaluate=dataclasses.replace(experiment.evaluate, protocol="gsm8k_strict")
  )
  advice = (
    "set config.data.folder or SYNTHJAX_DATA; it is config.evaluate.protocol that asks the "
    "problems of gsm8k: to ask your own"
  )
  with pytest.raises(files.DataError, match=advice):
    recipes.part("finetune", "run")(jobs.Job(experiment, tmp_path / "run"))
  assert (
    "'gsm8k_strict' asks the test problems of gsm8k, not those of config.data.test_path"
    in capsys.readouterr().out
  )
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["finetune", "math_rl"])
def test_a_task_without_its_own_place_for_answers_is_refused_with_those_there_are(tmp_path, recipe):
  path = _rows(tmp_path / "own.jsonl", *_sums(0, 5))
  experiment = config.resolve(
    {
      "recipe": recipe,
      "model": "world_160k",
      "train": {"steps": 1},
      "data": {
        "task": "traces",
        "train_path": path,
        "test_path": path,
        "tokenizer": {"kind": "bytes"},
      },
      "study": {"problems": (2, 4)},
    }
  )
  with pytest.raises(
    config.ConfigError, match="task 'traces' .*config.evaluate.answer.* hash, answer_is, final_line"
  ):
    recipes.part(recipe, "run")(jobs.Job(experiment, tmp_path / "run"))
  assert not [*(tmp_path / "run").glob("cache*")]


def test_a_test_problem_without_an_answer_is_named_before_anything_is_cached(tmp_path):
  train = _rows(tmp_path / "train.jsonl", *_sums(0, 5))
  files.write_jsonl(tmp_path / "test.jsonl", [{"id": "bare", "inputs": "9 + 9", "targets": " 18"}])
  experiment = _experiment(train, str(tmp_path / "test.jsonl"))
  with pytest.raises(
    files.DataError, match="test problem 'bare' has no answer .* a field 'answer'"
  ):
    finetune.run(jobs.Job(experiment, tmp_path / "run"))
  assert not [*(tmp_path / "run").glob("cache*")]
