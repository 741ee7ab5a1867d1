import dataclasses
import pathlib
import runpy

import pytest

from synthjax import __main__, config
from synthjax.config import schema
from synthjax.model.transformer import sized
from synthjax.train import plan

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(str(p) for p in (ROOT / "configs").glob("*.py"))
QUICKSTART = str(ROOT / "configs/world_sft.py")


@pytest.mark.parametrize("path", CONFIGS)
def test_every_variant_of_every_config_loads_and_is_valid(path):
  variants = runpy.run_path(path)["VARIANTS"]
  assert "smoke" in variants
  for spec in [path, *(f"{path}:{variant}" for variant in variants)]:
    experiment = config.load(spec)
    assert config.resolve(dataclasses.asdict(experiment)) == experiment


@pytest.mark.parametrize("variant", ["", ":smoke", ":7b"])
def test_every_multiple_of_the_gsm8k_study_has_sfts_curve_above_it(variant):
  study = config.load(f"{ROOT / 'configs/gsm8k_math_rl.py'}{variant}").study
  assert max(study.baseline_problems) >= 2 * max(study.problems)


def test_a_checkpoint_and_a_tokenizer_that_are_not_there_are_named_before_anything_is_done(
  tmp_path, capsys
):
  spec = f"{ROOT / 'configs/gsm8k_math_rl.py'}:7b"
  command = ["run", "--config", spec, "--workdir", str(tmp_path / "run")]
  assert __main__.main(command) == 1
  checkpoint, tokenizer = capsys.readouterr().err.splitlines()
  assert (
    "config.train.init is 'checkpoints/deepseek_math_7b': there is no such folder" in checkpoint
  )
  assert "--config.data.tokenizer.path=PATH" in tokenizer and not list(tmp_path.iterdir())
  (tmp_path / "tokenizer.json").write_text("{}")
  there = [f"train.init={tmp_path}", f"data.tokenizer.path={tmp_path / 'tokenizer.json'}"]
  config.check_files(config.load(spec, there))


def test_the_tokenizer_of_the_7b_study_must_fit_the_model_and_is_not_needed_for_its_plan(
  shared_data,
):
  spec, folder = f"{ROOT / 'configs/gsm8k_math_rl.py'}:7b", shared_data / "tokenizers"
  assert plan.lacks_tokenizer(config.load(spec))
  given = {
    name: config.load(spec, [f"data.tokenizer.path={folder / path}", *more])
    for name, path, more in (
      ("fits", "dolma2/tokenizer.json", ["data.tokenizer.eos=<|endoftext|>"]),
      ("larger", "deepseek_r1/tokenizer.json.gz", []),
    )
  }
  sizes = {name: plan.tokenizer_size(experiment) for name, experiment in given.items()}
  assert not plan.lacks_tokenizer(given["fits"]) and sizes["fits"] <= 102_400 < sizes["larger"]
  assert sized(given["fits"].model, sizes["fits"]).vocab_size == 102_400
  with pytest.raises(
    config.ConfigError, match="config.model.vocab_size is 102400, but the tokenizer has"
  ):
    sized(given["larger"].model, sizes["larger"])


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("train.stepz=1", r"config.train.stepz: unknown key .*did you mean 'steps'"),
    ("train.steps=many", r"config.train.steps is 'many' \(str\); expected int"),
    ("train.steps=1.5", r"config.train.steps is 1.5"),
    ("train.batch_size=True", r"config.train.batch_size is True"),
    ("model=llama2_8b", r"config.model is 'llama2_8b'; expected a preset .*did you mean 'llama"),
    ("train.optimizer.schedule=cosin", r"expected one of .*did you mean 'cosine'"),
    ("train.accumulate=7", r"config.train.accumulate is 7; expected a divisor of train.batch_size"),
    ("model_overrides.kv_heads=5", r"config.model.kv_heads is 5; expected a divisor"),
    ("world.leap=2", r"config.world.leap is 2.0; expected float, 0 to 1"),
    ("world.base_verbs=13", "config.world.base_verbs is 13; expected at most verbs=12"),
    ("world.verbs=3", "config.world.base_verbs is 4; expected at most verbs=3"),
    (
      "study.problems=512",
      r"config.study.problems is 512; expected tuple of int, "
      r".*--config.study.problems=\"\(512,\)\"",
    ),
    ("study.problems=(512,0)", r"config.study.problems\[1\] is 0; expected int, at least 1"),
    ("study.arms=sft", r"config.study.arms is 'sft' .*--config.study.arms=\"\('sft',\)\""),
    ("study.seeds=(0,0)", "config.study.seeds is .*each of them once"),
    ("train.loss=foo", "config.train.loss is 'foo' .*expected one of cross_entropy"),
    (
      "objective.preference.beta=-1",
      "config.objective.preference.beta is -1.0; expected float, above 0",
    ),
    (
      "objective.preference.label_smoothing=3",
      "label_smoothing is 3.0; expected float, 0 to below 0.5",
    ),
    (
      "train.optimizer.beta2=2",
      "config.train.optimizer.beta2 is 2.0; expected float, 0 to below 1",
    ),
    ("train.z_loss=1e999", "config.train.z_loss is inf; expected a finite float"),
    (f"train.z_loss={10**400}", "config.train.z_loss is .*expected a finite float"),
    ("study.sampling.top_p=2", "config.study.sampling.top_p is 2.0"),
    ("study.values.thresholds.min_drop=-1", "config.study.values.thresholds.min_drop is -1.0"),
    ("star.valued=3000", "config.star.valued is 3000; expected at most star.explored=2000"),
    (
      "study.problems=(512,",
      r"config.study.problems=\(512,: neither a Python literal nor plain text "
      r"\('\(' was never closed\)",
    ),
    (
      "data.path=rows.jsonl",
      "config.data.path: unknown key .*did you mean 'train_path' or 'test_path'.*--explain data",
    ),
    (
      "data.mixture=({'train_path':'a'},)",
      r"config.data.mixture\[0\].train_path: unknown key .*did you mean 'path'",
    ),
    (
      "evaluate.pass_at=(2,)",
      r"config.evaluate.pass_at is \(2,\); expected numbers from 1 to evaluate.samples=1",
    ),
    ("train.profile=12:10", "config.train.profile is '12:10'; expected FIRST:LAST"),
    ("train.profile=12:", "config.train.profile is '12:' .*FIRST:LAST"),
    ("data.task=gsm8k", r"config.data.tokenizer.kind is 'world'"),
    ("model.layers=2", r"single fields of the preset .*Write --config.model_overrides.layers=2"),
  ],
)
def test_a_bad_value_is_named_with_what_is_allowed(override, message):
  with pytest.raises(config.ConfigError, match=message):
    config.load(QUICKSTART, [override])


def test_an_override_of_a_field_that_the_file_does_not_name_is_taken():
  assert config.load(QUICKSTART, ["train.z_loss=1e-4"]).train.z_loss == 1e-4


def test_a_group_given_in_part_keeps_the_defaults_of_the_field_it_stands_in():
  given = {"values": {"rollouts": 4, "sampling": {"max_tokens": 9}}, "sampling": {"max_tokens": 9}}
  study = config.resolve({"study": given}).study
  assert study.sampling == dataclasses.replace(schema.Study().sampling, max_tokens=9)
  expected = dataclasses.replace(schema.Study().values, rollouts=4, sampling=study.sampling)
  assert study.values == expected


def test_a_preset_can_be_changed_field_by_field():
  experiment = config.load(QUICKSTART, ["model_overrides.layers=7"])
  assert (experiment.model.layers, experiment.model.d_model) == (7, 64)


MIXTURE = [
  "data.task=text",
  "data.tokenizer.kind=bytes",
  "data.test_path=held_out.txt",
  "train.steps=5",
  "data.mixture=({'task': 'text', 'path': 'a.txt', 'rate': 0.7},"
  " {'task': 'text', 'path': 'b.txt', 'rate': 0.3})",
]


def test_a_mixture_needs_no_path_of_its_own_and_says_where_one_belongs():
  assert len(config.load(QUICKSTART, MIXTURE).data.mixture) == 2
  message = "config.data.train_path is 'c.txt'; expected nothing with data.mixture"
  with pytest.raises(config.ConfigError, match=message):
    config.load(QUICKSTART, [*MIXTURE, "data.train_path=c.txt"])
