"""One command per verb: `python -m synthjax VERB --config configs/x.py[:smoke] [--config.key=value ...]`.

Heavy imports stay inside the verbs, so that `--help` answers at once.
"""

import argparse
import functools
import os
import sys
import traceback

from synthjax.config.credit import Sampling


def main(arguments: list[str] | None = None) -> int:
  """Runs a verb. Returns the exit code: 0, 1 for a run that failed with a known error, 2 for a wrong command line.

  SIGTERM and Ctrl-C end the process with 143 and 130, see `stopping.py`.
  """
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  parser = _parser()
  overrides = _overrides(parser, arguments)
  parsed = parser.parse_args([a for a in arguments if not a.startswith("--config.")])
  from synthjax import stopping
  from synthjax.errors import Error, of_the_disk

  with stopping.handled():
    try:
      code = parsed.verb(parsed, overrides)
      sys.stdout.flush()
    except BrokenPipeError:  # whoever reads us, such as `head`, has enough
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      return 0
    except Error as e:
      print(f"synthjax: {e}", file=sys.stderr)
      _end_all(str(e), 1)
      return 1
    except stopping.Stopped as e:
      print(f"synthjax: {e}", file=sys.stderr, flush=True)
      _end_all(str(e), e.exit_code)
      sys.stdout.flush()
      os._exit(e.exit_code)  # threads that are in the middle of something are left there
    except Exception as e:
      if said := of_the_disk(e):
        print(f"synthjax: {said}", file=sys.stderr)
        _end_all(said, 1)
        return 1
      if _connected():
        traceback.print_exc()
        _end_all(f"{type(e).__name__}: {e}", 1)
      raise
    if _connected():
      from synthjax import multihost

      multihost.finish()
    return code


def _connected() -> bool:
  """Whether this is one of several processes; without an import that `--help` would wait for."""
  multihost = sys.modules.get("synthjax.multihost")
  return multihost is not None and multihost.share()[1] > 1


def _end_all(message: str, exit_code: int) -> None:
  """One of several processes ends all of them; does nothing for a single one."""
  if _connected():
    from synthjax import multihost

    multihost.leave(message, exit_code)


def _overrides(parser: argparse.ArgumentParser, arguments: list[str]) -> list[str]:
  """KEY=VALUE of every --config.KEY=VALUE; a key without its value ends the program with code 2."""
  found = [a for a in arguments if a.startswith("--config.")]
  for argument in found:
    if "=" not in argument:
      parser.error(f"{argument}: expected {argument}=VALUE, with '=' and without spaces around it")
  return [argument.removeprefix("--config.") for argument in found]


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="synthjax",
    description="Measures what synthetic data is worth.",
    epilog="Any field of a config can be set: --config.train.steps=100",
  )
  from synthjax import __version__

  parser.add_argument("--version", action="version", version=f"synthjax {__version__}")
  verbs = parser.add_subparsers(required=True, metavar="VERB")

  def verb(name, function, text, required=True):
    added = verbs.add_parser(name, help=text, description=text)
    added.add_argument(
      "--config",
      required=required,
      help="configs/FILE.py, or configs/FILE.py:smoke for its small variant",
    )
    added.set_defaults(verb=function)
    return added

  def work(name, function, text):
    added = verb(name, function, text)
    added.add_argument(
      "--workdir", default="", help="folder for everything that is written (default: runs/NAME)"
    )
    added.add_argument(
      "--force",
      action="store_true",
      help="redo finished stages; what they held is kept beside them",
    )
    return added

  def training(name, function, text):
    work(name, function, text).add_argument(
      "--profile", default="", metavar="FIRST:LAST", help="write an xprof trace of these steps"
    )

  training(
    "run",
    functools.partial(_follow, "run"),
    "run a recipe's stages in order; finished ones are skipped",
  )
  work(
    "cache", functools.partial(_follow, "prepare"), "tokenise the config's data into ArrayRecord"
  ).add_argument(
    "--runner",
    default="",
    help="a Beam runner, such as DataflowRunner or FlinkRunner (default: in this process)",
  )
  training("train", functools.partial(_follow, "train"), "prepare what is not there, and train")
  evaluating = work(
    "evaluate",
    _evaluate,
    "score the trained policy, each of its checkpoints, or somebody else's generations",
  )
  evaluating.add_argument(
    "--watch", action="store_true", help="score every checkpoint once, while training writes them"
  )
  evaluating.add_argument(
    "--name",
    default="",
    help="of the watcher's folder below WORKDIR/watch (default: the protocol's name)",
  )
  evaluating.add_argument(
    "--generations", default="", help="JSONL of {id, responses} to score without a model"
  )
  exporting = work("export", _export, "write the parameters alone of the trained policy")
  exporting.add_argument("--to", required=True, help="a new folder")
  sampling = work(
    "sample",
    _sample,
    "answer a file of requests with the trained policy or a server; goes on where it was",
  )
  sampling.add_argument(
    "--requests", required=True, help="JSONL of {id, prompt or prompt_ids, sampling, n, seed}"
  )
  sampling.add_argument(
    "--out",
    required=True,
    help="JSONL of results, in the order of the requests; OUT.journal holds what is finished",
  )
  sampling.add_argument(
    "--server",
    default="",
    metavar="URL",
    help="ask an OpenAI-compatible server, such as http://127.0.0.1:8000/v1",
  )
  sampling.add_argument(
    "--model", default="", help="as the server calls it (default: the config's name)"
  )
  serving = work("serve", _serve, "serve the trained policy in the OpenAI protocol")
  serving.add_argument("--host", default="127.0.0.1", help="0.0.0.0: every network interface")
  serving.add_argument("--port", type=int, default=8000, help="0: a free one")
  serving.add_argument(
    "--token",
    default="",
    help="where the bearer token is read that clients must send: env:NAME or file:PATH",
  )
  serving.add_argument(
    "--queue",
    type=int,
    default=8192,
    help="samples waiting or in flight; what would pass this is answered 429",
  )
  serving.add_argument("--prompt", type=int, default=512, help="tokens of the longest prompt")
  serving.add_argument("--max-tokens", type=int, default=512, help="tokens of the longest sample")
  doctor = work("doctor", _doctor, "check a policy")
  doctor.add_argument(
    "--logprob-parity",
    action="store_true",
    required=True,
    help="do sampled log-probs equal the trainer's?",
  )
  diagnosing = work(
    "values",
    _values,
    "say from a few of a policy's own traces and rollouts which arm is worth its sampling",
  )
  diagnosing.add_argument(
    "--diagnose",
    action="store_true",
    required=True,
    help="place the policy's problems in the phase diagram",
  )
  diagnosing.add_argument("--problems", type=int, default=100, help="how many are sampled")
  diagnosing.add_argument("--traces", type=int, default=8, help="of each problem")
  diagnosing.add_argument(
    "--rollouts", type=int, default=8, help="from every prefix of up to three traces a problem"
  )
  diagnosing.add_argument(
    "--checkpoint",
    default="",
    help="folder of checkpoints, or of the stage that holds them (default: train.init)",
  )
  for added in (sampling, serving, doctor):
    added.add_argument(
      "--checkpoint",
      default="",
      help="folder of checkpoints, or of the stage that holds them (default: the workdir's, else train.init)",
    )
    added.add_argument("--slots", type=int, default=128, help="sequences that are sampled together")
  for added in (evaluating, exporting, sampling, serving, doctor, diagnosing):
    added.add_argument(
      "--arm",
      default="",
      metavar="CELL/ARM",
      help="which policy of a study: its folder below the workdir, such as n00512_s0/rft",
    )
  reporting = verb(
    "report",
    _report,
    "count the leaps and wrong steps of a finished study A on the embedded world, and their advantages",
  )
  reporting.add_argument(
    "--workdir",
    required=True,
    help="folder of a run of recipe math_rl; unfinished stages are left out",
  )
  shown = verb(
    "config", _config, "print the resolved config, or explain the fields of all configs", False
  )
  shown.add_argument(
    "--explain",
    nargs="?",
    const="",
    metavar="KEY",
    help="print comment, type, range and default of every field, or of those at and below KEY",
  )
  verb(
    "plan", _plan, "parameters, memory and FLOPs of a config, without allocating anything"
  ).add_argument(
    "--devices",
    type=int,
    default=0,
    help="plan for that many simulated devices instead of those that are here",
  )
  beginning = verbs.add_parser(
    "init", help="write a short config to begin from, which runs as it is"
  )
  beginning.add_argument(
    "--from",
    dest="starter",
    required=True,
    choices=("sft", "pretrain", "study"),
    help="fine-tuning on problems, pre-training on text, or study A on problems",
  )
  beginning.add_argument("file", metavar="FILE", help="a new file, such as my_sft.py")
  beginning.set_defaults(verb=_init)
  comparing = verbs.add_parser("compare", help="paired difference between two responses.jsonl")
  comparing.add_argument("one")
  comparing.add_argument("other")
  comparing.set_defaults(verb=_compare)
  verifying = verbs.add_parser(
    "verify", help="judge a file of traces, and build the sets of right and wrong ones"
  )
  verifying.add_argument(
    "--traces", required=True, help="JSONL of {problem_id, text}, optionally gold"
  )
  verifying.add_argument(
    "--problems", default="", help="JSONL of {id, question, answer}, where the traces hold no gold"
  )
  verifying.add_argument(
    "--mode",
    required=True,
    help="where the final answer stands: boxed, hash, math_order, ...; see docs/verify.md",
  )
  verifying.add_argument(
    "--policy", default="strict", choices=("strict", "lm_eval"), help="what counts as equal"
  )
  verifying.add_argument("--out", required=True, help="folder for verdicts, sets and report")
  verifying.set_defaults(verb=_verify)
  cleaning = verbs.add_parser(
    "decontaminate", help="take problems of evaluation sets out of a file of training problems"
  )
  cleaning.add_argument("--candidates", required=True, help="JSONL of training problems")
  cleaning.add_argument("--field", default="question", help="which of its fields holds the problem")
  cleaning.add_argument(
    "--against", required=True, nargs="+", help="JSONL files of evaluation problems"
  )
  cleaning.add_argument("--out", required=True, help="folder for clean.jsonl and report.json")
  cleaning.set_defaults(verb=_decontaminate)
  bench = verbs.add_parser(
    "bench", help="measure speed and memory beside other tools", description=_bench.__doc__
  )
  bench.add_argument(
    "what",
    choices=(
      "train",
      "data",
      "verify",
      "logprob",
      "attention",
      "preference_step",
      "sample",
      "values",
      "pits",
      "coverage",
    ),
  )
  bench.add_argument("--seconds", type=float, default=60.0, help="about how long to measure")
  bench.set_defaults(verb=_bench)
  return parser


def _devices() -> None:
  """On CPU a device a core, where the user has not said otherwise: sampling is 1.2 to 2 times faster. Call before jax is imported."""
  os.environ.setdefault(
    "XLA_FLAGS", f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}"
  )


def _experiment(parsed, overrides):
  from synthjax import config

  profile = [f"train.profile='{parsed.profile}'"] if getattr(parsed, "profile", "") else []
  return config.load(parsed.config, [*overrides, *profile])


def _job(parsed, overrides, writes=False, trains=False):
  """The experiment in its folder, with all processes connected.

  Before jax is loaded, whoever `writes` there is refused where it is taken, and whoever `trains` where a file is missing.
  """
  experiment = _experiment(parsed, overrides)
  from synthjax import workfolder

  folder = workfolder.choose(experiment, parsed.workdir)
  if writes:
    workfolder.check_free(experiment, folder)
  if trains:
    from synthjax.data import sources

    sources.check_there(experiment)
  from synthjax import job as jobs
  from synthjax import multihost, progress

  multihost.start(multihost.from_environment())
  progress.quiet(not multihost.is_first())
  return jobs.Job(experiment, folder, parsed.force, getattr(parsed, "runner", ""))


def _follow(part: str, parsed, overrides) -> int:
  """A part of the config's recipe."""
  if part != "prepare":
    from synthjax import config

    config.check_files(_experiment(parsed, overrides))
  job = _job(parsed, overrides, writes=True, trains=True)
  from synthjax import recipes, workfolder

  work = recipes.part(job.experiment.recipe, part)
  with workfolder.alone(job.experiment, job.workdir, f"synthjax {recipes.VERBS[part]}"):
    work(job)
  return 0


def _evaluate(parsed, overrides) -> int:
  if parsed.generations:
    return _score(parsed, overrides)
  job = _job(parsed, overrides, writes=not parsed.watch)
  from synthjax import job as jobs
  from synthjax import workfolder
  from synthjax.math_study import find_arm
  from synthjax.recipes import finetune

  if parsed.arm:
    with workfolder.alone(job.experiment, job.workdir, "synthjax evaluate"):
      find_arm.evaluate(job, find_arm.find(job, parsed.arm))
    return 0
  if finetune.trained(job) is None:
    find_arm.refuse_study(job.workdir)
  if parsed.watch:  # beside the training, in a folder of its own
    finetune.watch(job, jobs.tokenizer_of(job), parsed.name)
    return 0
  with workfolder.alone(job.experiment, job.workdir, "synthjax evaluate"):
    finetune.evaluate(job, jobs.tokenizer_of(job), "after")
  return 0


def _score(parsed, overrides) -> int:
  experiment = _experiment(parsed, overrides)
  from synthjax import locks, workfolder
  from synthjax.evaluate import protocols, run, score

  answered = score.read_generations(parsed.generations, lambda: run.golds(experiment))
  out = workfolder.choose(experiment, parsed.workdir) / "evaluate_generations"
  with locks.folder_lock(out, "synthjax evaluate --generations"):
    results = score.score(
      answered,
      protocols.of(experiment),
      experiment.evaluate.policy,
      experiment.evaluate.pass_at,
      out,
      {"generations": parsed.generations},
    )
  print(f"{score.table(results)}\n  in {out}: results.json, responses.jsonl, wrong.jsonl")
  return 0


def _policy(parsed, overrides):
  """(experiment, tokenizer, model, parameters, fingerprint) of what is trained so far, or of what training starts from."""
  _devices()
  job = _job(parsed, overrides)
  import dataclasses

  from synthjax import files, progress
  from synthjax import job as jobs
  from synthjax.errors import ConfigError
  from synthjax.math_study import find_arm
  from synthjax.recipes import finetune

  if parsed.arm and parsed.checkpoint:
    raise ConfigError(
      f"--arm {parsed.arm} and --checkpoint {parsed.checkpoint} name two policies; give one of them"
    )
  if parsed.arm:
    return _arm(find_arm.find(job, parsed.arm))
  training = None if parsed.checkpoint else finetune.trained(job)
  source = job.experiment.train.init
  if parsed.checkpoint:
    source = find_arm.checkpoints_in(parsed.checkpoint)
  elif training:
    source = training.checkpoints
  else:
    find_arm.refuse_study(job.workdir)
  tokenizer = jobs.tokenizer_of(job)
  model, params, step = jobs.load_policy(job.experiment, tokenizer, source, fall_back=True)
  if step is None:
    progress.say("policy: random parameters")
  else:
    progress.say(f"policy: {training.describe(step) if training else f'{source}, step {step:,}'}")
  what = [
    jobs.identity(source, step) or job.experiment.seed,
    dataclasses.asdict(model.cfg),
    tokenizer.fingerprint,
  ]
  return job.experiment, tokenizer, model, params, files.value_hash(what)


def _arm(arm):
  """As `_policy`, of a study's arm."""
  import dataclasses

  from synthjax import files, progress
  from synthjax import job as jobs

  model, params, step = jobs.load_policy(arm.experiment, arm.tokenizer, arm.checkpoints, arm.step)
  progress.say(f"policy: {arm.checkpoints}, step {step:,}")
  what = [
    jobs.identity(arm.checkpoints, step),
    dataclasses.asdict(model.cfg),
    arm.tokenizer.fingerprint,
  ]
  return arm.experiment, arm.tokenizer, model, params, files.value_hash(what)


def _sample(parsed, overrides) -> int:
  from synthjax import files, multihost, progress, records
  from synthjax.rollout import journal
  from synthjax.rollout.requests import Engine, Request

  engine: Engine
  requests = list(records.read(Request, parsed.requests))
  if parsed.server:
    from synthjax.rollout import remote

    engine = remote.Remote(
      remote.Server(parsed.server, parsed.model or _experiment(parsed, overrides).name)
    )
  else:
    experiment, tokenizer, model, params, fingerprint = _policy(parsed, overrides)
    from synthjax.rollout.engine import JaxEngine

    engine = JaxEngine(model, params, tokenizer, mesh=experiment.mesh, slots=parsed.slots)
    engine.fingerprint = fingerprint
  results = {
    result.id: result for result in journal.together(engine, requests, f"{parsed.out}.journal")
  }
  if multihost.is_first():
    files.write_jsonl(parsed.out, (results[request.id].to_json() for request in requests))
  errors = [result for result in results.values() if result.error]
  progress.say(
    f"{parsed.out}: {len(results):,} results, {len(errors):,} of them errors"
    + (f"; the first one, of request {errors[0].id!r}: {errors[0].error}" if errors else "")
  )
  return int(bool(errors))


def _serve(parsed, overrides) -> int:
  experiment, tokenizer, model, params, _ = _policy(parsed, overrides)
  import jax

  from synthjax import stopping
  from synthjax.rollout.engine import JaxEngine
  from synthjax.rollout.requests import Request
  from synthjax.rollout.shapes import serving_shape
  from synthjax.serve import server

  shape = serving_shape(parsed.slots, parsed.prompt, parsed.max_tokens, jax.local_device_count())
  engine = JaxEngine(model, params, tokenizer, shape, experiment.mesh, fair=True)
  list(engine.generate([Request("compiles", prompt_ids=(0,), sampling=Sampling(max_tokens=1))]))
  settings = server.Settings(
    host=parsed.host, port=parsed.port, queue=parsed.queue, token=parsed.token
  )
  with stopping.handed_over():
    server.serve(engine, settings, parsed.arm or experiment.name)
  return 0


def _doctor(parsed, overrides) -> int:
  experiment, tokenizer, model, params, _ = _policy(parsed, overrides)
  from synthjax import files
  from synthjax.evaluate import protocols, run
  from synthjax.math_study import find_arm
  from synthjax.rollout import parity
  from synthjax.rollout.engine import JaxEngine
  from synthjax.rollout.requests import Request

  find_arm.refuse_star(experiment)
  prompts = [
    tuple(tokenizer.encode(protocols.of(experiment).prompt(example)))
    for example in run.problems(experiment)[:64]
  ]
  requests = {
    str(i): Request(
      str(i), prompt_ids=ids, n=4, sampling=Sampling(experiment.evaluate.max_new_tokens)
    )
    for i, ids in enumerate(prompts)
  }
  results = list(
    JaxEngine(model, params, tokenizer, mesh=experiment.mesh, slots=parsed.slots).generate(
      requests.values()
    )
  )
  if errors := [result.error for result in results if result.error]:
    raise files.DataError(f"{len(errors)} of {len(requests)} problems cannot be asked: {errors[0]}")
  found = parity.measure(
    model, params, [(requests[result.id], result) for result in results], tokenizer.eos_id
  )
  bounds = parity.bounds(model.dtype)
  good = found.largest < bounds.largest and found.mean < bounds.mean
  verdict = "below" if good else "NOT BELOW"
  print(
    f"{found.tokens:,} sampled tokens of {len(requests)} problems, {bounds.dtype}: log-probs of engine and trainer differ by "
    f"{found.largest:.2g} at most, {found.mean:.2g} on average; {verdict} {bounds.largest:g} and {bounds.mean:g}"
  )
  return int(not good)


def _values(parsed, overrides) -> int:
  _devices()
  job = _job(parsed, overrides)
  from synthjax.math_study import diagnose

  size = diagnose.Sampled(problems=parsed.problems, traces=parsed.traces, rollouts=parsed.rollouts)
  diagnose.run(job, parsed.arm, parsed.checkpoint, size)
  return 0


def _init(parsed, overrides) -> int:
  from synthjax import starters

  starters.write(parsed.starter, parsed.file)
  print(
    f"{parsed.file}: written; it runs on a few examples as it is: synthjax run --config {parsed.file} --workdir "
    f"runs/my_{parsed.starter}\nPut the paths of your own data into it; docs/your_data.md says what rows look like."
  )
  return 0


def _compare(parsed, overrides) -> int:
  from synthjax.evaluate import score

  found = score.compare(parsed.one, parsed.other)
  low, high = found["interval"]
  print(
    f"{100 * found['difference']:+.2f} ± {100 * found['standard_error']:.2f} points, 95 % interval {100 * low:+.2f} to "
    f"{100 * high:+.2f}, over {found['problems']:,} problems that both have ({found['left_out']} left out)"
  )
  return 0


def _verify(parsed, overrides) -> int:
  from synthjax.verify import label

  label.label(parsed.traces, parsed.out, parsed.mode, parsed.problems, parsed.policy)
  return 0


def _decontaminate(parsed, overrides) -> int:
  from synthjax.verify import decontaminate

  report = decontaminate.clean_file(parsed.candidates, parsed.against, parsed.field, parsed.out)
  removed = ", ".join(f"{rule} {n}" for rule, n in report["removed"].items())
  print(
    f"{report['candidates']:,} problems, {report['clean']:,} clean; removed: {removed}; kept, though they differ from an evaluation "
    f"problem in their numbers alone: {report['template_overlap']}\n  in {parsed.out}: clean.jsonl, report.json"
  )
  return 0


def _export(parsed, overrides) -> int:
  job = _job(parsed, overrides)
  import jax

  from synthjax import files, locks
  from synthjax import job as jobs
  from synthjax.math_study import find_arm
  from synthjax.model.transformer import Transformer, sized
  from synthjax.recipes import finetune
  from synthjax.train import checkpoint

  arm = find_arm.find(job, parsed.arm) if parsed.arm else None
  training = finetune.trained(job)
  if arm:
    experiment, tokenizer, checkpoints = arm.experiment, arm.tokenizer, arm.checkpoints
  elif training:
    experiment, tokenizer, checkpoints = (
      job.experiment,
      jobs.tokenizer_of(job),
      training.checkpoints,
    )
  else:
    find_arm.refuse_study(job.workdir)
    raise files.DataError(
      f"{job.workdir / 'train'}: nothing was trained here yet; run `synthjax train` first"
    )
  model = Transformer(sized(experiment.model, tokenizer.size))
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), model.abstract()
  )
  with locks.lock_beside(parsed.to, "synthjax export", "wait for it, or give another --to"):
    step = checkpoint.export_params(checkpoints, parsed.to, abstract)
  described = f"{checkpoints}, step {step:,}"
  if training and not arm:
    described = training.describe(step)
  print(f"{parsed.to}: the parameters of {described}")
  return 0


def _report(parsed, overrides) -> int:
  experiment = _experiment(parsed, overrides)
  from synthjax import locks
  from synthjax.math_study import spurious

  with locks.folder_lock(parsed.workdir, "synthjax report"):
    spurious.report(experiment, parsed.workdir)
  return 0


def _config(parsed, overrides) -> int:
  from synthjax import config
  from synthjax.config import explain
  from synthjax.errors import ConfigError

  if parsed.explain is not None:
    print(explain.describe(parsed.explain))
    return 0
  if not parsed.config:
    raise ConfigError(
      "config needs --config FILE.py, or --explain to see the fields of all configs"
    )
  print(config.describe(_experiment(parsed, overrides)))
  return 0


def _plan(parsed, overrides) -> int:
  if parsed.devices:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
      f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={parsed.devices}"
    )
  experiment = _experiment(parsed, overrides)
  from synthjax.train import plan

  print(plan.describe(experiment, simulated=bool(parsed.devices)))
  return 0


def _bench(parsed, overrides) -> int:
  """`train`: a step of 10M parameters beside PyTorch (make parity installs it). `data`: packing and loading beside grain and seqio.
  `verify`: judging beside math-verify alone. `logprob`, `attention`: the kernels beside plain jax. `preference_step`: beside TRL
  (JSON). `sample`: tokens a second beside Hugging Face. `values`: step values with and without shared prefixes. `pits`: schedules.
  `coverage`: how often a study's intervals hold the truth."""
  if overrides:
    from synthjax.errors import ConfigError

    raise ConfigError(f"bench takes no --config overrides, found {overrides}")
  import importlib

  if parsed.what in ("sample", "values"):
    _devices()
  from synthjax import progress

  progress.quiet(True)  # what is printed is figures, some of them as JSON
  importlib.import_module(f"synthjax.bench.{parsed.what}").run(parsed.seconds)
  return 0


if __name__ == "__main__":
  sys.exit(main())
