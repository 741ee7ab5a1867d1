"""sample, serve, doctor: a trained policy answers, and its engine is checked."""

import argparse

from synthjax.cli import common


def add_verbs(verbs: common.Verbs) -> None:
  """Adds the family's verbs."""
  _add_sample(verbs)
  _add_serve(verbs)
  _add_doctor(verbs)


def _add_sample(verbs: common.Verbs) -> None:
  text = (
    "sample completions for a file of requests from the trained policy or a server; "
    "an interrupted start goes on"
  )
  parser = common.add_job_verb(verbs, "sample", sample, text)
  parser.add_argument(
    "--requests", required=True, help="JSONL of {id, prompt or prompt_ids, sampling, n, seed}"
  )
  parser.add_argument(
    "--out",
    required=True,
    help="JSONL of results, in the order of the requests; OUT.journal holds finished ones",
  )
  parser.add_argument(
    "--server",
    default="",
    metavar="URL",
    help="ask an OpenAI-compatible server, such as http://127.0.0.1:8000/v1",
  )
  parser.add_argument(
    "--model", default="", help="the server's name of the model (default: the config's name)"
  )
  common.add_policy(parser)


def sample(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Writes a result for every request. Returns 1 where some of them are errors."""
  from synthjax import files, multihost, progress, records
  from synthjax.rollout import journal
  from synthjax.rollout.requests import Engine, Request

  engine: Engine
  requests = list(records.read(Request, parsed.requests))
  if parsed.server:
    from synthjax.rollout import remote

    name = parsed.model or common.load_experiment(parsed, overrides).name
    engine = remote.Remote(remote.Server(parsed.server, name))
  else:
    policy = common.load_policy(parsed, overrides)
    from synthjax.rollout.engine import JaxEngine

    engine = JaxEngine(
      policy.model,
      policy.params,
      policy.tokenizer,
      mesh=policy.experiment.mesh,
      slots=parsed.slots,
    )
    engine.fingerprint = policy.fingerprint
  results = {}
  for result in journal.together(engine, requests, f"{parsed.out}.journal"):
    results[result.id] = result
  if multihost.is_first():
    files.write_jsonl(parsed.out, (results[request.id].to_json() for request in requests))
  errors = [result for result in results.values() if result.error]
  summary = f"{parsed.out}: {len(results):,} results, {len(errors):,} of them errors"
  if errors:
    summary += f"; the first one, of request {errors[0].id!r}: {errors[0].error}"
  progress.say(summary)
  return int(bool(errors))


def _add_serve(verbs: common.Verbs) -> None:
  text = "serve the trained policy in the OpenAI protocol"
  parser = common.add_job_verb(verbs, "serve", serve, text)
  parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: every network interface")
  parser.add_argument("--port", type=int, default=8000, help="0: a free one")
  parser.add_argument(
    "--token",
    default="",
    help="env:NAME or file:PATH of the bearer token that clients must send (default: none needed)",
  )
  parser.add_argument(
    "--queue",
    type=int,
    default=8192,
    help="samples waiting or in flight; a request beyond that is answered with status 429",
  )
  parser.add_argument("--prompt", type=int, default=512, help="tokens of the longest prompt")
  parser.add_argument("--max-tokens", type=int, default=512, help="tokens of the longest sample")
  common.add_policy(parser)


def serve(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Answers HTTP requests until the process is asked to stop."""
  policy = common.load_policy(parsed, overrides)
  import jax

  from synthjax import stopping
  from synthjax.config.credit import Sampling
  from synthjax.rollout.engine import JaxEngine
  from synthjax.rollout.requests import Request
  from synthjax.rollout.shapes import serving_shape
  from synthjax.serve import server

  shape = serving_shape(parsed.slots, parsed.prompt, parsed.max_tokens, jax.local_device_count())
  engine = JaxEngine(
    policy.model, policy.params, policy.tokenizer, shape, policy.experiment.mesh, fair=True
  )
  # Compiles before the port opens: the first client would wait for it.
  warm_up = Request("compiles", prompt_ids=(0,), sampling=Sampling(max_tokens=1))
  list(engine.generate([warm_up]))
  settings = server.ServerSettings(
    host=parsed.host, port=parsed.port, queue=parsed.queue, token=parsed.token
  )
  with stopping.handed_over():
    server.serve(engine, settings, parsed.arm or policy.experiment.name)
  return 0


def _add_doctor(verbs: common.Verbs) -> None:
  parser = common.add_job_verb(verbs, "doctor", doctor, "check a policy")
  parser.add_argument(
    "--logprob-parity",
    action="store_true",
    required=True,
    help="do the engine's log-probs equal the trainer's?",
  )
  common.add_policy(parser)


def doctor(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Compares log-probs of engine and trainer. Returns 1 where they differ by more than rounding."""
  policy = common.load_policy(parsed, overrides)
  from synthjax import files
  from synthjax.config.credit import Sampling
  from synthjax.evaluate import protocols, run
  from synthjax.recipes import study_policies
  from synthjax.rollout import parity
  from synthjax.rollout.engine import JaxEngine
  from synthjax.rollout.requests import Request

  experiment, tokenizer = policy.experiment, policy.tokenizer
  study_policies.refuse_star(experiment)
  protocol = protocols.of(experiment)
  sampling = Sampling(experiment.evaluate.max_new_tokens)
  requests = {}
  for i, example in enumerate(run.problems(experiment)[:64]):
    prompt_ids = tuple(tokenizer.encode(protocol.prompt(example)))
    requests[str(i)] = Request(str(i), prompt_ids=prompt_ids, n=4, sampling=sampling)
  engine = JaxEngine(
    policy.model, policy.params, tokenizer, mesh=experiment.mesh, slots=parsed.slots
  )
  results = list(engine.generate(requests.values()))
  if errors := [result.error for result in results if result.error]:
    raise files.DataError(f"{len(errors)} of {len(requests)} problems cannot be asked: {errors[0]}")
  sampled = [(requests[result.id], result) for result in results]
  measured = parity.measure(policy.model, policy.params, sampled, tokenizer.eos_id)
  bounds = parity.bounds(policy.model.dtype)
  equal = measured.largest < bounds.largest and measured.mean < bounds.mean
  verdict = "below" if equal else "NOT BELOW"
  print(
    f"{measured.tokens:,} sampled tokens of {len(requests)} problems, {bounds.dtype}: log-probs of "
    f"engine and trainer differ by {measured.largest:.2g} at most, {measured.mean:.2g} on average; "
    f"{verdict} {bounds.largest:g} and {bounds.mean:g}"
  )
  return int(not equal)
