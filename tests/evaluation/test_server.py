"""`moslora eval --server`: a server's answers are an evaluation as a model's are, whatever it says and when it ends."""

import json
import os
import signal
import socket
import time
from random import Random

import pytest

from changes_kit import write_jsonl
from cli_kit import run
from evaluation_kit import read_results
from faulty_servers_kit import faulty
from forked_kit import python
from message_kit import says
from moslora.runs.evaluation import read_predictions
from moslora.runs.run import Run
from server_kit import raw, serving
from training_kit import ON_A_CPU


def evaluation(served):
    """The folder of the server's answers."""
    (folder,) = (served.path / "eval").glob("*-at-*")
    return folder


def answered(served):
    return read_predictions(evaluation(served))


def test_server_is_evaluated_as_the_run(served, capsys):
    pretended = served.pretended()
    own = Run(served.path).evaluation_folder()
    with serving(pretended) as address:
        code, out, errors = run(capsys, "eval", served.path, "--server", address)
        assert code == 0 and says(out, f"small at {address}", "boolq", "macro average"), out + errors
        pretended.asked.clear()
        code, out, _ = run(capsys, "eval", served.path, "--server", address)
        assert code == 0 and says(out, "60 questions answered in an earlier call"), out
        code, _, errors = run(capsys, "eval", served.path, "--server", address, "--out", own.with_name("mine"))
        assert code == 2 and says(errors, "for the scores of other weights", "-at-127.0.0.1"), errors
    assert not any(body.get("echo") for body in pretended.asked), "what was answered is not asked again"
    assert (
        evaluation(served).name.startswith(f"{own.name}-at-127.0.0.1-") and Run(served.path).evaluation_folder() == own
    )
    answered_as_by_the_run(served)
    theirs, macro = read_results(evaluation(served)).macro, read_results(own).macro
    assert theirs is not None and macro is not None and theirs.accuracy == macro.accuracy
    code, out, errors = run(capsys, "compare", own, evaluation(served))
    assert code == 0 and says(out, evaluation(served).name, "macro average"), out + errors


def answered_as_by_the_run(served):
    """Compares the server's answers with the run's own."""
    ours = {one.id: one.scores for one in read_predictions(Run(served.path).evaluation_folder())}
    assert sorted(one.id for one in answered(served)) == sorted(ours) and len(ours) == 60
    for prediction in answered(served):
        assert prediction.scores == pytest.approx(ours[prediction.id], abs=1e-4)


def unanswered(served):
    """Task -> number of refused questions, by ``results.json``."""
    return json.loads((evaluation(served) / "results.json").read_text()).get("unanswered", {})


def test_what_is_refused_is_counted_and_asked_again(served, capsys):
    pretended = served.pretended(context=70, refuses=True)
    with serving(pretended) as address:
        code, out, _ = run(capsys, "eval", served.path, "--server", address)
        refused = [one for one in answered(served) if one.refused]
        assert code == 0 and says(out, f"{len(refused)} questions not answered", "context size"), out
        results = read_results(evaluation(served))
        assert 0 < len(refused) == sum(unanswered(served).values()) < 60
        assert all(one.scores == () and "exceeds the available context" in one.refused for one in refused)
        assert results.micro is not None and results.micro.n == 60 - len(refused)
        pretended.context = None
        pretended.asked.clear()
        code, out, _ = run(capsys, "eval", served.path, "--server", address)
    assert code == 0 and f"asking {len(refused)} questions" in out
    assert not any(one.refused for one in answered(served)) and not unanswered(served)


@pytest.mark.parametrize(
    ("content", "of_models"),
    [
        (b"", False),
        (b"\xff\xfe", False),
        (b'{"choices": null}', False),
        (b'{"choices": []}', False),
        (b'{"choices": [null]}', False),
        (b'{"choices": [{"text": 3}]}', False),
        (b'{"choices": [{"text": "a", "logprobs": {"token_logprobs": [NaN]}}]}', False),
        (b'{"choices": [{"text": "a", "logprobs": {"token_logprobs": ["-1"]}}]}', False),
        (b'{"choices": [{"text": "a"}], "usage": {"prompt_tokens": "3"}}', False),
        (b'{"choices": ' + b"[" * 100_000, False),
        (b"null", True),
        (b'{"data": [{"id": ["a"]}]}', True),
    ],
    ids=lambda content: content[:60].decode(errors="replace") if isinstance(content, bytes) else None,
)
def test_what_is_no_answer_is_one_line(content, of_models, served, capsys):
    faults = {"lists": content} if of_models else {"always": raw(content)}
    with serving(served.pretended(**faults)) as address:
        code, _, errors = run(capsys, "eval", served.path, "--server", address)
    assert code == 1 and errors.count("\n") == 1 and errors.isascii(), errors
    assert says(errors, address, "not that of OpenAI's interface"), errors


def test_no_control_character_of_a_server_is_printed(served, capsys):
    evil = "\x1b]0;owned\x07\u202eback"
    for faults in (
        {"always": raw(evil.encode(), 400)},
        {"always": raw(json.dumps({"error": {"message": evil}}).encode(), 400)},
        {"models": (evil, "other")},
    ):
        with serving(served.pretended(**faults)) as address:
            code, out, errors = run(capsys, "eval", served.path, "--server", address)
        assert code and "owned" in errors and not {"\x1b", "\x07", "\u202e"} & set(out + errors), errors


@pytest.mark.parametrize("after", [0, 60])
def test_server_that_ends_over_echo_is_asked_token_by_token(after, served, capsys):
    """At once, or after some questions; it is there again for other requests."""
    pretended = served.pretended(tells="echo forced")
    pretended.ends_at = lambda body: bool(body.get("echo")) and len(pretended.asked) > after
    with serving(pretended) as address:
        code, out, errors = run(capsys, "eval", served.path, "--server", address)
    assert code == 0 and "token by token" in out, out + errors
    answered_as_by_the_run(served)


def test_server_that_ends_for_good_is_one_line(served, capsys):
    pretended = served.pretended(tells="echo")
    pretended.ends_at = lambda body: len(pretended.asked) > 60
    with serving(pretended) as address:
        code, _, errors = run(capsys, "eval", served.path, "--server", address)
    kept = f"{len(answered(served))} answers are kept"
    assert code == 1 and errors.count("\n") == 1, errors
    assert says(errors, "the connection was lost", "of the prompt's tokens", kept, "--at-once 1"), errors


def test_servers_are_asked_texts_and_words(served, tmp_path, capsys):
    texts = [{"text": f"a fox sat near {place}", "source": str(place)} for place in range(5)]
    sums = [{"question": f"{first} + 2 =", "answer": str(first + 2)} for first in range(5)]
    for name, rows in (("texts", texts), ("sums", sums)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "own.yaml").write_text(
        f"tasks:\n  mine: {{texts: {tmp_path}/texts.jsonl}}\n"
        f"  sums: {{test: {tmp_path}/sums.jsonl, answer: answer, match: number, max_new_tokens: 6}}\n"
    )
    own = ("--tasks", tmp_path / "own.yaml", "--out")
    assert run(capsys, "eval", served.path, *own, tmp_path / "here")[0] == 0
    with serving(served.pretended()) as address:
        code, out, errors = run(capsys, "eval", served.path, *own, tmp_path / "there", "--server", address)
    assert code == 0, out + errors
    ours = {one.id: one for one in read_predictions(tmp_path / "here")}
    for prediction in read_predictions(tmp_path / "there"):
        its = ours[prediction.id]
        assert prediction.scores == pytest.approx(its.scores, abs=1e-3) and prediction.bytes == its.bytes
        assert prediction.text == its.text and prediction.prediction == its.prediction


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--server", "http://localhost:9", "--base"), "--base"),
        (("--server", "http://localhost:9", "--dtype", "float32"), "--dtype"),
        (("--model", "mine"), "--server"),
    ],
)
def test_options_of_another_model_are_refused(words, named, trained, capsys):
    code, _, errors = run(capsys, "eval", trained, *words)
    assert code == 2 and says(errors, named), errors


FAULTS = [
    ("a cut context", "echo", True),
    ("a cut context", "forced", True),
    ("values moved back", "echo", True),
    ("values moved on", "echo", True),
    ("another request's answer", "echo", True),
    ("another request's answer, its own count", "echo", True),
    ("BOS twice in tokens", "echo", True),
    ("BOS twice in a text", "echo", False),
    ("a token before all", "forced", True),
    ("a template", "echo", False),
]


@pytest.mark.parametrize(("fault", "tells", "takes_tokens"), FAULTS)
def test_answers_about_another_prompt_are_refused_by_name(fault, tells, takes_tokens, served, capsys):
    """What is answered all the same is as the run computes it. `verify` never calls such a server the run, also where
    rounding would explain the distance."""
    ours = {one.id: one.scores for one in read_predictions(Run(served.path).evaluation_folder())}
    with serving(faulty(served, fault, Random(0), tells=tells, takes_tokens=takes_tokens)) as address:
        code, out, errors = run(capsys, "eval", served.path, "--server", address, "--at-once", "1")
        if code or "not answered" in out:
            assert "reads another prompt" in out + errors, out + errors
        else:
            assert "without BOS" in out, out
        if not code:
            assert all(one.refused or one.scores == pytest.approx(ours[one.id], abs=1e-4) for one in answered(served))
        coarse = ("--dtype", "bfloat16", "--at-once", "1")
        code, out, errors = run(capsys, "verify", served.path, "--server", address, *coarse)
    assert code == 1 and "computes this run" not in out, out
    assert any(name in out + errors for name in ("another prompt", "the prompt is another", "context is cut")), out


def test_listed_token_without_id_needs_its_own_text(served, tmp_path, capsys, monkeypatch):
    """The pieces of Chinese characters have all the same one."""
    monkeypatch.setattr("moslora.evaluation.reading.LIKELIEST", (len(served.tokenizer),))
    options = [("\u9ec4\u8272", "\u7ea2"), ("a", "b"), ("\u4e16 a", "\u754c b"), ("d", "a fox")]
    rows = [{"question": f"what of {place}?", "options": both, "answer": both[0]} for place, both in enumerate(options)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "own.yaml").write_text(
        f"tasks:\n  mine: {{test: {tmp_path}/rows.jsonl, question: question, options: options, answer: answer}}\n"
    )
    command = ("eval", served.path, "--tasks", tmp_path / "own.yaml", "--protocol", "cloze", "--format", "cloze")
    assert run(capsys, *command, "--out", tmp_path / "here")[0] == 0
    with serving(served.pretended(tells="likeliest")) as address:
        code, out, errors = run(capsys, *command, "--out", tmp_path / "there", "--server", address)
    assert code == 0, out + errors
    ours = {one.id: one.scores for one in read_predictions(tmp_path / "here")}
    found = read_predictions(tmp_path / "there")
    for one in found:
        assert one.refused or one.scores == pytest.approx(ours[one.id], abs=1e-3)
    refused = {one.id.rpartition("/")[2]: one.refused for one in found if one.refused}
    assert sorted(refused) == ["0", "2"] and all("text of several tokens" in why for why in refused.values()), refused


def test_a_silent_server_does_not_hold_the_program(served):
    """After Ctrl-C, while questions wait for it."""
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    code = f"""
from moslora.evaluation.model import each_reply
from moslora.evaluation.server import Server

server = Server("http://127.0.0.1:{silent.getsockname()[1]}")
list(each_reply(lambda place: server.ask("completions", {{}}), [1, 2], at_once=2))
"""
    process = python("-c", code, env=os.environ | ON_A_CPU)
    (first, _), (second, _) = silent.accept(), silent.accept()
    time.sleep(0.2)  # until the main thread waits as well: Python may lose a signal in between
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    for each in (silent, first, second):
        each.close()
    assert "KeyboardInterrupt" in errors
