"""The protocol: requests in all shapes, answers whole and in chunks."""

import random

import pytest

from synthjax.config.credit import Sampling
from synthjax.rollout.remote import Remote, Server
from synthjax.rollout.requests import Request
from synthjax.serve import wire

GOOD = {"model": "letters", "prompt": "p"}


@pytest.mark.parametrize("stop", [(), ("#",), ("bd", "##a", "e#"), ("aaaaaaaa",)])
def test_the_chunks_of_a_stream_add_up_to_the_whole_answer(server, expected_text, stop):
  client = server.client()
  for seed in range(4):
    body = {
      **GOOD,
      "n": 3,
      "seed": seed,
      "max_tokens": 40,
      "stop": list(stop) or None,
      "temperature": 0.5,
      "logprobs": 1,
    }
    whole = client.completions.create(**body)
    texts, log_probs, reasons, chunks = [""] * 3, [[], [], []], [None] * 3, 0
    options = {"include_usage": True}
    for chunk in client.completions.create(**body, stream=True, stream_options=options):
      chunks += 1
      for choice in chunk.choices:
        texts[choice.index] += choice.text
        if choice.logprobs:
          log_probs[choice.index] += choice.logprobs.token_logprobs
        reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert texts == [expected_text("p", seed, j, max_tokens=40, stop=stop) for j in range(3)]
    assert log_probs == [choice.logprobs.token_logprobs for choice in whole.choices]
    assert len(log_probs[0]) >= len(texts[0])
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert chunk.usage == whole.usage
    assert whole.usage.completion_tokens == sum(map(len, texts))
    assert chunks > 6


def test_chat_messages_are_joined_by_blank_lines_and_streamed_too(server, expected_text):
  client = server.client()
  messages = [
    {"role": "system", "content": "a"},
    {"role": "user", "content": [{"type": "text", "text": "b"}]},
  ]
  body = {
    "model": "letters",
    "messages": messages,
    "seed": 3,
    "max_completion_tokens": 20,
    "logprobs": True,
  }
  (choice,) = client.chat.completions.create(**body).choices
  assert choice.message.content == expected_text("a\n\nb", 3, max_tokens=20)
  assert len(choice.logprobs.content) == 20
  chunks = list(client.chat.completions.create(**body, stream=True))
  text = "".join(chunk.choices[0].delta.content for chunk in chunks)
  assert text == choice.message.content
  assert chunks[-1].choices[0].finish_reason == "length"
  assert [model.id for model in client.models.list()] == ["letters"]


def test_two_requests_without_a_seed_get_different_samples(server):
  assert server.complete(max_tokens=20) != server.complete(max_tokens=20)


# Bodies that are not JSON objects, or hold numbers that JSON does not know.
MALFORMED = [
  (b"{", "not valid JSON"),
  (b"\xff", "not valid JSON"),
  (b"[" * 100_000, "not valid JSON"),
  (b"[]", "expected an object"),
  (b'{"model": "letters", "prompt": "\\ud800"}', "not valid JSON"),
  (b'{"model": "letters", "prompt": "p", "temperature": NaN}', "temperature"),
  (b'{"model": "letters", "prompt": "p", "top_p": 1' + b"0" * 400 + b"}", "top_p"),
  ({"prompt": "p"}, "model is missing"),
  ({"model": "letters"}, "prompt is missing"),
]
# Fields that make a good request a bad one.
BAD_FIELDS = [
  ("prompt", "", "prompt is empty"),
  ("prompt", ["a", "b"], "one prompt"),
  ("prompt", [1, "b"], "one prompt"),
  ("prompt", [True], "one prompt"),
  ("prompt", [], "one prompt"),
  ("prompt", {}, "str or list"),
  ("n", 0, "n is 0"),
  ("n", 10**6, "n is 1000000"),
  ("n", True, "of type bool"),
  ("seed", -1, "seed is -1"),
  ("max_tokens", "7", "of type str"),
  ("max_tokens", 0, "max_tokens is 0"),
  ("top_p", 2, "top_p is 2"),
  ("stop", [""], "stop[0] is"),
  ("stop", [1], "stop[0] is"),
  ("stop_token_ids", ["a"], "stop_token_ids"),
  ("logprobs", 5, "logprobs is 5"),
  ("echo", True, "echo is not supported"),
  ("best_of", 4, "best_of is not supported"),
  ("frequency_penalty", 0.5, "frequency_penalty is not supported"),
  ("temprature", 1, "temprature is not an option"),
  ("stream", "yes", "of type str"),
]


def check_refused(reply, status, message):
  """The reply is an error in the protocol's shape."""
  assert reply.status == status
  error = reply.body["error"]
  assert message in error["message"]
  assert set(error) == {"message", "type", "param", "code"}
  assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(("body", "message"), MALFORMED)
def test_a_malformed_body_is_refused_with_its_reason(server, body, message):
  check_refused(server.send("/v1/completions", body), 400, message)


@pytest.mark.parametrize(("field", "value", "message"), BAD_FIELDS)
def test_a_bad_field_is_refused_by_name(server, field, value, message):
  reply = server.send("/v1/completions", {**GOOD, field: value})
  check_refused(reply, 400, message)


def test_another_model_and_a_body_that_is_too_large_have_statuses_of_their_own(server):
  reply = server.send("/v1/completions", {**GOOD, "model": "gpt"})
  check_refused(reply, 404, "'gpt'")
  reply = server.send("/v1/completions", {**GOOD, "prompt": "p" * (5 << 20)})
  check_refused(reply, 413, "4194304")


@pytest.mark.parametrize(
  "message",
  [
    {},
    "a",
    {"role": "user", "content": 3},
    {"role": "user", "content": [{"type": "image_url"}]},
  ],
)
def test_a_message_without_text_is_refused(server, message):
  body = {"model": "letters", "messages": [message]}
  reply = server.send("/v1/chat/completions", body)
  check_refused(reply, 400, "messages[0]")
  assert reply.body["error"]["param"] == "messages"


def test_unsupported_options_that_ask_for_nothing_are_accepted(server):
  body = {
    **GOOD,
    "echo": False,
    "best_of": 1,
    "logit_bias": {},
    "frequency_penalty": 0.0,
    "suffix": None,
    "user": "me",
    "stream": None,
    "max_tokens": 2,
  }
  assert server.send("/v1/completions", body).status == 200


def test_unknown_paths_and_methods_are_refused_in_the_protocols_shape(server):
  assert server.send("/v1/embeddings", {}).status == 404
  reply = server.send("/v1/completions", b"", method="GET")
  assert reply.status == 405
  assert "GET /v1/completions" in reply.body["error"]["message"]


@pytest.mark.parametrize("chat", [False, True])
def test_our_client_gets_from_our_server_what_the_session_samples(server, letters, chat):
  requests = []
  for i in range(40):
    stop = ("#",) if i % 2 else ()
    sampling = Sampling(max_tokens=30, stop=stop)
    requests.append(Request(str(i), f"p{i}", n=1 + i % 3, seed=i, sampling=sampling))
  engine = Remote(Server(server.url, "letters", chat=chat, concurrency=8))
  results = {}
  for result in engine.generate([*requests, Request("bad", "")]):
    results[result.id] = result
  assert "prompt is empty" in results.pop("bad").error
  assert len(results) == 40
  for request in requests:
    result = results[request.id]
    assert result.prompt_tokens == len(request.prompt)
    for sample, drawn in zip(result.samples, letters.draw_all(request), strict=True):
      expected = drawn.sample
      assert sample.text == expected.text
      assert sample.log_probs == expected.log_probs
      assert sample.finish == expected.finish


def test_a_text_that_was_sent_never_has_to_be_taken_back():
  chance = random.Random(1)

  def word(length):
    return "".join(chance.choice("ab") for _ in range(length))

  for _ in range(2000):
    whole = word(12)
    stop = [word(chance.randint(1, 4)) for _ in range(chance.randint(0, 3))]
    ends = [whole.find(mark) for mark in stop if mark in whole]
    final = whole[: min(ends, default=len(whole))]
    sent = ""
    for length in range(13):
      text = wire.settled(whole[:length], stop)
      assert text.startswith(sent)
      assert final.startswith(text)
      sent = text
  # Half a character.
  assert wire.settled("a\ufffd\ufffd", ()) == "a"
