"""What a tiny study A with every arm leaves on disk; see conftest.py."""

import collections
import itertools

import pytest

from synthjax import files
from synthjax import job as jobs
from synthjax.data import tokenizers
from synthjax.math_study import arms as study_arms
from synthjax.math_study import cell
from synthjax.model.transformer import Transformer, sized
from synthjax.train import checkpoint
from synthjax.verify import sets


def test_every_arm_is_trained_and_evaluated(tiny, whole):
  result, workdir = whole
  arms = (*tiny.arms, "step_dpo.branch*2")
  assert set(tiny.points(result)) == set(arms) and set(tiny.points(result, 48)) == {"sft"}
  for arm in arms:
    assert (
      tiny.made(workdir, f"evaluate_dev_{arm}")["problems"]
      == tiny.made(workdir, f"greedy_dev_{arm}")["problems"]
      == 20
    )
    assert tiny.points(result)[arm]["accuracy"] == pytest.approx(
      tiny.made(workdir, f"evaluate_dev_{arm}")["accuracy"]
    )
  assert not any("nothing to learn" in note for note in result["notes"])
  assert {(each["arm"], each["problems"]) for each in result["greedy"]} == {
    (arm, 24) for arm in arms
  } | {("sft", 48)}
  base = tiny.made(workdir, "evaluate_dev_base")["accuracy"]
  assert result["base"] == pytest.approx(base)
  assert [each["value"] for each in result["sft_less_base"]] == [
    pytest.approx(tiny.points(result, n)["sft"]["accuracy"] - base) for n in (24, 48)
  ]
  assert (workdir / "table.txt").read_text().startswith("SFT DOES NOT IMPROVE ON ITS BASE")


def test_every_purpose_and_round_draws_its_own_random_numbers(tiny, whole):
  _, workdir = whole
  drawn = [
    tiny.rows(workdir, f"{stage}/drawn.jsonl")
    for stage in ("draw6_sft", "draw6_rft", "draw6_step_dpo.branch")
  ]
  one = cell.open_cell(
    jobs.Job(tiny.experiment(), workdir),
    jobs.tokenizer_of(jobs.Job(tiny.experiment(), workdir)),
    24,
    0,
  )
  purposes = [
    one.seed("draw", "rft"),
    one.seed("draw", "step_dpo.branch"),
    one.seed("values", "rft"),
    one.seed("evaluate", "dev"),
  ]
  assert len(set(purposes)) == 4 and all(0 <= purpose < 2**31 for purpose in purposes)
  assert len({str([d["text"] for d in each]) for each in drawn}) == 3
  few = {
    d["text"]
    for d in tiny.rows(workdir, "draw6_sft/drawn.jsonl")
    if d["problem_id"] == drawn[0][0]["problem_id"]
  }
  many = [
    d["text"]
    for d in tiny.rows(workdir, "draw8_sft/drawn.jsonl")
    if d["problem_id"] == drawn[0][0]["problem_id"]
  ]
  assert few == set(many[:6])  # more samples begin with fewer ones


def test_equal_sampling_draws_as_many_tokens_as_samples_and_values_together(tiny, whole):
  _, workdir = whole
  for policy, stage in (("sft", "right_rft_equal"), ("rft", "right_rft2_equal")):
    each = tiny.made(workdir, stage)["traces"] // 24
    drawn = tiny.made(workdir, f"draw{each}_{policy}")["tokens"]
    wanted = (
      tiny.made(workdir, f"draw6_{policy}")["tokens"]
      + tiny.made(workdir, f"values_{policy}")["tokens"]
    )
    assert each > 6 and drawn == pytest.approx(wanted, rel=0.25)  # the texts are others


def test_counts_of_traces_add_up(tiny, whole):
  _, workdir = whole
  teacher = tiny.made(workdir, "teacher")
  assert teacher["problems"] == teacher["equal"] == 24
  for stage, each in {
    "draw6_sft": 6,
    "draw8_sft": 8,
    "draw6_rft": 6,
    "draw6_step_dpo.branch": 6,
  }.items():
    made, drawn = tiny.made(workdir, stage), tiny.rows(workdir, f"{stage}/drawn.jsonl")
    assert (
      made["traces"]
      == len(drawn)
      == 24 * each
      == sum(made.get(value, 0) for value in ("equal", "different", "undecided"))
    )
    assert (
      made["equal"]
      == sum(d["verdict"]["value"] == "equal" for d in drawn)
      == made["accuracy"] * made["traces"]
    )
    assert made["distinct"] == len({(d["problem_id"], d["text"]) for d in drawn})
    assert sum(made["reasons"].values()) == made.get("undecided", 0) and made["truncated"] == sum(
      not d.get("complete", True) for d in drawn
    )
  for stage, (draws, most) in {
    "rft": ("draw6_sft", 2),
    "rft_many": ("draw8_sft", 8),
    "rft2": ("draw6_rft", 2),
  }.items():
    made, drawn = tiny.made(workdir, f"right_{stage}"), tiny.rows(workdir, f"{draws}/drawn.jsonl")
    right = collections.defaultdict(set)
    for d in drawn:
      if d["verdict"]["value"] == "equal" and d.get("complete", True):
        right[d["problem_id"]].add(sets.equations(d["text"]))  # what makes two traces the same
    assert made["kept"] == sum(min(most, len(texts)) for texts in right.values()) and made[
      "problems"
    ] == len(right)
    assert (
      made["kept"] + sum(made["dropped"].values())
      == made["right"]
      == tiny.made(workdir, draws)["equal"]
    )
  assert tiny.made(workdir, "rft")["solutions"] == 24 + tiny.made(workdir, "right_rft")["kept"]
  assert (
    tiny.made(workdir, "rft2")["solutions"]
    == tiny.made(workdir, "rft")["solutions"] + tiny.made(workdir, "right_rft2")["kept"]
  )


def test_counts_of_pairs_and_pits_add_up(tiny, whole):
  _, workdir = whole
  for arm, paired in tiny.paired.items():
    mode = paired.mode
    made, rows = tiny.made(workdir, f"pairs_{arm}"), tiny.rows(workdir, f"pairs_{arm}/pairs.jsonl")
    wrong, dropped = made["traces"]["wrong"], made["dropped"]
    assert (
      made["mode"] == mode and made["pairs"] == len(rows) == tiny.made(workdir, arm)["trees"] > 0
    )
    assert sum(made["problems"].values()) == 24 and made["problems"]["with pairs"] == len(
      {row["problem_id"] for row in rows}
    )
    assert (
      sum(made["traces"].values()) == 24 * 6
      and made["traces"]["right"] == tiny.made(workdir, "draw6_rft")["equal"]
    )
    if mode in ("paper", "branch", "step"):
      without = dropped.get("trace: no pit within the thresholds", 0) + dropped.get(
        "trace: no step values", 0
      )
      assert sum(made["pits"].values()) + without == wrong
      assert wrong - dropped["trace: no step values"] == tiny.made(workdir, "values_rft")["traces"]
      assert all(str(row["metadata"]["pit"]) in made["pits"] for row in rows)
    most = max(
      collections.Counter((row["problem_id"], row["metadata"]["trace"]) for row in rows).values()
    )
    assert most == 1
  made = tiny.made(workdir, "trees_awr")
  assert (
    made["traces"] + sum(made["dropped"].values()) == 24 * 6
    and made["trees"] == tiny.made(workdir, "awr")["trees"] <= made["problems"] == 24
  )
  assert (
    made["traces"] == tiny.made(workdir, "values_rft_all")["traces"]
  )  # the full schedule values every step


def test_tokens_are_those_that_were_drawn_and_an_arm_pays_for_all_that_it_starts_from(tiny, whole):
  result, workdir = whole
  stages = [path.name for path in (workdir / "n00024_s0").iterdir()]
  sampled = {
    stage: tiny.made(workdir, stage)["tokens"]
    for stage in stages
    if stage.startswith(("draw", "values"))
  }
  for stage, tokens in sampled.items():
    drawn = [
      sample
      for row in tiny.rows(workdir, f"{stage}/journal.jsonl")
      for sample in row["result"]["samples"]
    ]
    assert tokens == sum(
      len(sample["log_probs"]) for sample in drawn
    )  # one a token, end-of-text among them
  own = {arm: tiny.made(workdir, arm)["tokens"] for arm in [*tiny.arms, "step_dpo.branch*2"]}
  trained, drawn = (
    {"sft": ("sft",), "sft_long": ("sft_long",)},
    {"sft": (), "sft_long": (), "rft": ("draw6_sft",)},
  )
  trained |= {
    arm: ("sft", arm) for arm in ("rft", "rft_many", "rft_equal", "rft_clean", "rft_spurious")
  }
  more = {
    arm: tiny.made(workdir, f"right_{arm}")["traces"] // 24 for arm in ("rft_equal", "rft2_equal")
  }
  drawn["rft_equal"] = (f"draw{more['rft_equal']}_sft",)
  drawn |= dict.fromkeys(("rft_many", "rft_clean", "rft_spurious"), ("draw8_sft",))
  values_of = {"": (), "incorrect": ("values_rft",), "every": ("values_rft_all",)}
  for arm in ("rft2", "rft2_equal", *tiny.paired, "awr"):
    values = values_of[study_arms.ARMS[arm].needs_values]
    draws = f"draw{more['rft2_equal']}_rft" if arm == "rft2_equal" else "draw6_rft"
    trained[arm], drawn[arm] = ("sft", "rft", arm), ("draw6_sft", draws, *values)
  trained["step_dpo.branch*2"] = (*trained["step_dpo.branch"], "step_dpo.branch*2")
  drawn["step_dpo.branch*2"] = (
    *drawn["step_dpo.branch"],
    "draw6_step_dpo.branch",
    "values_step_dpo.branch",
  )
  for arm, point in tiny.points(result).items():
    assert point["tokens_trained"] == sum(own[name] for name in trained[arm]), arm
    assert point["tokens_sampled"] == sum(sampled[name] for name in drawn[arm]), arm
  assert own["sft_long"] == pytest.approx(own["rft"], rel=0.3)  # to within a step


def test_sides_of_pairs_are_the_sampled_tokens_and_end_of_text_stands_where_the_design_puts_it(
  tiny,
  whole,
):
  _, workdir = whole
  tokenizer = tokenizers.load(tiny.experiment().data.tokenizer, tiny.experiment().world)
  drawn = collections.defaultdict(list)
  for row in tiny.rows(workdir, "draw6_rft/drawn.jsonl"):
    drawn[row["problem_id"]].append(row)
  ended = {
    "random": (True, True),
    "distant": (True, True),
    "paper": (True, False),
    "branch": (True, False),
    "step": (False, False),
  }
  for arm, paired in tiny.paired.items():
    mode = paired.mode
    for row in tiny.rows(workdir, f"pairs_{arm}/pairs.jsonl"):
      about = row["metadata"]
      wrong, ids = drawn[row["problem_id"]][about["trace"]], {}
      for side, ends in zip(("chosen", "rejected"), ended[mode]):
        ids[side] = list(itertools.chain(*about[f"{side}_steps"]))
        complete = row.get(f"{side}_complete", True)
        assert complete == (ends and (side == "chosen" or wrong.get("complete", True)))
        assert ids[side].count(tokenizer.eos_id) == complete == (ids[side][-1] == tokenizer.eos_id)
        whole_text = tokenizer.decode(
          [*about["prefix_ids"], *ids[side][: len(ids[side]) - complete]]
        )
        assert (
          whole_text == row["prefix"] + row[side] and tokenizer.eos_id not in about["prefix_ids"]
        )
      pit, known = about.get("pit"), list(itertools.chain(*wrong["steps"]))
      assert wrong["verdict"]["value"] != "equal" and (pit is None) == (
        mode in ("random", "distant")
      )
      before = wrong["steps"][: pit - 1] if mode in ("branch", "step") else []
      assert about["prefix_ids"] == [*tokenizer.encode(row["prefix"])] and row["prefix"].endswith(
        tokenizer.decode(list(itertools.chain(*before)))
      )
      given = len(list(itertools.chain(*before)))
      until = len(list(itertools.chain(*wrong["steps"][:pit]))) if pit else len(known)
      assert [token for token in ids["rejected"] if token != tokenizer.eos_id] == known[given:until]
      if mode in ("random", "distant", "paper"):
        right = [
          [*itertools.chain(*d["steps"])]
          for d in drawn[row["problem_id"]]
          if d["verdict"]["value"] == "equal"
        ]
        assert [token for token in ids["chosen"] if token != tokenizer.eos_id] in right
      elif mode == "step":
        assert len(about["chosen_steps"]) == 1


def test_preference_arms_start_from_and_refer_to_the_policy_that_the_config_says(
  tiny, whole, copied
):
  def start(workdir, arm):
    folder = workdir / "n00024_s0"
    identity = {name: jobs.identity(str(folder / name / "checkpoints")) for name in ("sft", "rft")}
    reference = files.read_json(folder / arm / "reference/made_of.json")["checkpoint"]
    _, _, about = checkpoint.load_params(folder / arm / "checkpoints", shapes)
    found = next(name for name, known in identity.items() if known == reference)
    assert about["config"]["train"]["init"] == str(folder / found / "checkpoints")
    return found

  _, workdir = whole
  shapes = Transformer(
    sized(
      tiny.experiment().model,
      tokenizers.load(tiny.experiment().data.tokenizer, tiny.experiment().world).size,
    )
  ).abstract()
  assert {start(workdir, arm) for arm in (*tiny.paired, "awr")} == {"rft"}
  result = tiny.run(
    copied, study__start="sft", study__arms=("rft2", "dpo"), study__least_accuracy=0.0
  )
  assert start(copied, "dpo") == "sft"
  assert (
    tiny.made(copied, "rft2")["solutions"] == 24 + tiny.made(copied, "right_rft2")["kept"]
  )  # the samples of SFT, once
  assert (
    tiny.points(result)["dpo"]["tokens_sampled"] == tiny.made(copied, "draw6_sft")["tokens"]
  )  # they were not free
  assert (
    tiny.points(result)["dpo"]["tokens_trained"]
    == tiny.made(copied, "sft")["tokens"] + tiny.made(copied, "dpo")["tokens"]
  )
  assert set(tiny.points(result)) == {"sft", "rft2", "dpo"}  # sft is the unit, asked for or not
