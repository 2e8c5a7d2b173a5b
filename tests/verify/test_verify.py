"""`moslora verify`: a server is named what it computes, whatever it tells, and a fault is named as what it is."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_kit import run
from message_kit import says
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.runs.evaluation import read_predictions
from moslora.runs.run import Run
from moslora.verify.replies import REPLIES, Replies, Reply
from moslora.verify.verdict import FEWEST_IN_ALL
from moslora.verify.verification import Options, read_asked
from server_kit import Pretended, dies, half, serving, slow, status
from tests.verify.conftest import Served


def verified(capsys: pytest.CaptureFixture[str], served: Served, pretended: Pretended, *options: object) -> str:
    """The verdict's kind; the exit code is 0 for the run alone."""
    capsys.readouterr()  # of a training
    with serving(pretended) as address:
        code, out, errors = run(capsys, "verify", served.path, "--server", address, "--json", *options)
    found = json.loads(out)
    assert (code == 0) == (found["verdict"] == "run") == found["passed"], errors
    return str(found["verdict"])


def replies(served: Served) -> Replies:
    (folder,) = (served.path / "verify").iterdir()
    return Replies(folder)


@pytest.mark.parametrize("tells", ["echo", "prompt_logprobs", "forced", "likeliest"])
@pytest.mark.parametrize("takes_tokens", [True, False])
def test_what_a_server_tells_in_any_way_is_what_eval_has_computed(
    tells: str, takes_tokens: bool, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verified(capsys, served, served.pretended(tells=tells, takes_tokens=takes_tokens)) == "run"
    own = {one.id: one.scores for one in read_predictions(Run(served.path).evaluation())}
    told = [reply for reply in replies(served).found.values() if reply.way == ("tokens" if takes_tokens else "text")]
    assert len(told) == 60
    for reply in told:
        scores = reply.known_scores
        if scores is None:  # a label is beyond the 20 likeliest
            assert tells == "likeliest" and len(reply.told) < 5
            continue
        mean = sum(scores) / len(scores) - sum(own[reply.id]) / len(scores)
        assert scores == pytest.approx([score + mean for score in own[reply.id]], abs=1e-4)


def test_a_server_whose_texts_name_no_option_is_not_judged(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(served.pretended(tells="nothing")) as address:
        code, out, _ = run(capsys, "verify", served.path, "--server", address)
    assert code == 1 and says(out, "tells no log-probabilities", "--protocol generate"), out


@pytest.mark.parametrize("fault", ["base", "scale", "another model"])
def test_another_model_is_named(fault: str, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    models = {
        "base": lambda: served.model(base=True),
        "scale": lambda: served.model(scale=0.9),
        "another model": lambda: served.small,
    }
    assert verified(capsys, served, served.pretended(models[fault]())) == fault


def test_a_checkpoint_that_was_evaluated_is_named(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(served.pretended(served.model("checkpoints/step-36"))) as address:
        code, out, _ = run(capsys, "verify", served.path, "--server", address)
    assert code == 1 and says(out, "checkpoint"), out
    evaluate_target(open_target(str(served.path / "checkpoints" / "step-36")))
    with serving(served.pretended(served.model("checkpoints/step-36"))) as address:
        code, out, _ = run(capsys, "verify", served.path, "--server", address)
    assert code == 1 and "another checkpoint: computes step-36 of this run" in out


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ({"begins_text": (1,)}, "BOS twice"),
        ({"begins_tokens": (1,)}, "BOS twice"),
        ({"wrap": "user: {}\nassistant:"}, "by its template or its tokenizer"),
    ],
)
def test_another_prompt_is_named(
    where: dict[str, object], named: str, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert served.tokenizer.bos_token_id == 1
    with serving(served.pretended(**where)) as address:
        code, out, _ = run(capsys, "verify", served.path, "--server", address)
    assert code == 1 and says(out, "the prompt is another one", named), out


def test_a_context_that_is_cut_is_named(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(capsys, served, served.pretended(context=70)) == "context"


@pytest.mark.parametrize("trouble", [status(429, Retry_After="0"), status(500), status(503), half, dies, slow(0.05)])
def test_what_passes_is_tried_again(trouble: object, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """Not within the first requests, which find out what the server offers."""
    pretended = served.pretended()
    with serving(pretended) as address:
        run(capsys, "verify", served.path, "--server", address, "--limit", "4")
        pretended.troubles = [trouble] * 5
        code, out, errors = run(capsys, "verify", served.path, "--server", address, "--at-once", "1")
    assert code == 0, out + errors


@pytest.mark.parametrize(
    ("trouble", "named"),
    [
        (status(429), "429"),
        (status(500), "500 Internal Server Error: in trouble"),
        (half, "no JSON"),
        (dies, "connection was lost"),
    ],
)
def test_what_stays_is_one_line_and_the_replies_are_kept(
    trouble: object, named: str, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    pretended = served.pretended(always=trouble, after=40)
    with serving(pretended) as address:
        command = ("verify", served.path, "--server", address, "--at-once", "1")
        code, _, errors = run(capsys, *command)
        kept = len(replies(served).found)
        assert code == 1 and errors.count("\n") == 1
        assert says(errors, address, named, f"{kept} of 60 questions answered and kept"), errors
        assert 0 < kept < 60
        pretended.always = None
        pretended.asked.clear()
        assert run(capsys, *command)[0] == 0
    again = [body for body in pretended.asked if body.get("echo") and isinstance(body["prompt"], list)]
    options = 4  # at most, of a question
    assert len(again) <= (60 - kept + 4) * options, "what was answered is not asked again"


def test_a_server_that_is_not_there_is_one_line(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run(capsys, "verify", served.path, "--server", "http://127.0.0.1:9")
    assert code == 1 and says(errors, "http://127.0.0.1:9", "no server there") and errors.count("\n") == 1
    code, _, errors = run(capsys, "verify", served.path, "--server", "localhost:8000")
    assert code == 2 and says(errors, "--server localhost:8000", "http://")


def test_a_restarted_server_with_another_model_is_asked_again(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    pretended = served.pretended()
    with serving(pretended) as address:
        assert run(capsys, "verify", served.path, "--server", address)[0] == 0
        pretended.model = served.model(base=True)
        code, out, _ = run(capsys, "verify", served.path, "--server", address)
    assert code == 1 and says(out, "answers otherwise than before", "computes its base")


def test_without_the_base_the_command_that_asks_it_is_told(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    own = Run(served.path).evaluation()
    for file in own.with_name(f"{own.name}-base").iterdir():
        file.unlink()
    with serving(served.pretended()) as address:
        code, out, _ = run(capsys, "verify", served.path, "--server", address)
    assert code == 0 and says(out, "moslora eval", "--base", "--dtype float32", "computes this run")
    with serving(served.pretended(served.model(base=True))) as address:
        code, out, _ = run(capsys, "verify", served.path, "--server", address)
    assert code == 1 and "does not compute this run" in out


def test_a_key_is_sent_and_written_nowhere(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = served.pretended(key="a-secret")
    with serving(pretended) as address:
        code, _, errors = run(capsys, "verify", served.path, "--server", address)
        assert code == 2 and says(errors, "401", "MOSLORA_SERVER_KEY")
        monkeypatch.setenv("MOSLORA_SERVER_KEY", "a-secret")
        code, out, errors = run(capsys, "verify", served.path, "--server", address)
    assert code == 0 and "a-secret" not in out + errors
    for path in served.path.rglob("*"):
        assert not path.is_file() or b"a-secret" not in path.read_bytes()


def test_no_other_address_is_spoken_to(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a proxy nor where the server sends us."""
    elsewhere = served.pretended()
    with serving(elsewhere) as other:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other)
        with serving(served.pretended(always=status(307, Location=f"{other}/v1/completions"))) as address:
            code, _, errors = run(capsys, "verify", served.path, "--server", address)
    assert code == 2 and says(errors, "307", other) and not elsewhere.asked


def test_of_several_models_one_is_named(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    pretended = served.pretended(models=("base", "mine"))
    with serving(pretended) as address:
        code, _, errors = run(capsys, "verify", served.path, "--server", address)
        assert code == 2 and says(errors, "several models", "--model", "base, mine")
        assert run(capsys, "verify", served.path, "--server", address, "--model", "mine")[0] == 0
    assert {body["model"] for body in pretended.asked} == {"mine"}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["cloze", "generate"])
def test_other_protocols(
    protocol: str, served_world: Callable[..., Served], capsys: pytest.CaptureFixture[str]
) -> None:
    how = {"cloze": ("data.format=cloze",), "generate": ()}[protocol]
    served = served_world(f"evaluation.protocol={protocol}", *how)
    assert verified(capsys, served, served.pretended()) == "run"
    assert verified(capsys, served, served.pretended(served.model(base=True))) == "base"
    if protocol == "generate":
        with serving(served.pretended(tells="nothing", takes_tokens=False)) as address:
            code, out, _ = run(capsys, "verify", served.path, "--server", address, "--again")
        assert code == 0 and says(out, "asked as text", "same text in 60 of 60"), out


@pytest.mark.slow
def test_a_chat_is_asked_in_the_servers_template(
    served_world: Callable[..., Served], capsys: pytest.CaptureFixture[str]
) -> None:
    served = served_world("data.format=chat", "evaluation.tasks=[arc_easy,obqa]")
    pretended = served.pretended(tells="forced")
    assert verified(capsys, served, pretended) == "run"
    assert any("messages" in body for body in pretended.asked)
    for fault, named in (
        ({"chat_wrap": "system: be brief\n{}"}, "by its template"),
        ({"begins_chat": (1,)}, "BOS twice"),
    ):
        with serving(served.pretended(tells="forced", **fault)) as address:
            code, out, _ = run(capsys, "verify", served.path, "--server", address)
        assert code == 1 and says(out, "the prompt is another one in a chat", named), out


def test_half_a_line_on_the_disk_is_asked_again(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    pretended = served.pretended()
    with serving(pretended) as address:
        assert run(capsys, "verify", served.path, "--server", address)[0] == 0
        (file,) = (served.path / "verify").glob(f"*/{REPLIES}")
        content = file.read_bytes()
        file.write_bytes(content[:-20])
        pretended.asked.clear()
        assert run(capsys, "verify", served.path, "--server", address)[0] == 0
    assert len(file.read_bytes()) == len(content)


def test_an_evaluation_that_is_missing_is_told(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run(capsys, "verify", trained, "--server", "http://127.0.0.1:9")
    assert code == 2 and says(errors, "not evaluated", "moslora eval")


@pytest.mark.parametrize("refuses", [False, True])
def test_a_context_that_was_made_longer_is_asked_again(
    refuses: bool, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the same address, by a server that has cut or refused the longest questions only."""
    pretended = served.pretended(context=70, refuses=refuses)
    with serving(pretended) as address:
        code, out, _ = run(capsys, "verify", served.path, "--server", address)
        assert code == 1 and "the context is cut" in out
        pretended.context = None
        code, out, _ = run(capsys, "verify", served.path, "--server", address)
    assert code == 0 and "computes this run" in out, out


def test_a_first_question_beyond_the_context_is_no_error(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """How the server is asked is found with the shortest; those that fit are too few for a verdict here."""
    asked = read_asked(Run(served.path), Options())
    first = asked.questions[0].length
    shorter = [question for question in asked.questions if question.length < first]
    assert 0 < len(shorter) < FEWEST_IN_ALL
    assert verified(capsys, served, served.pretended(context=first - 1, refuses=True)) == "undecided"


def test_answers_of_weights_that_are_gone_are_refused(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """As after more training: the server would be called another checkpoint."""
    shutil.rmtree(served.path / "adapter")
    shutil.copytree(served.path / "checkpoints" / "step-36", served.path / "adapter")
    code, _, errors = run(capsys, "verify", served.path, "--server", "http://127.0.0.1:9")
    assert code == 2 and says(errors, "other weights than", "moslora eval"), errors


def test_a_checkpoint_is_verified_by_the_name_of_its_evaluation(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = served.path / "checkpoints" / "step-36"
    evaluate_target(open_target(str(checkpoint)))
    name = Run(served.path).evaluation().name + "-step-36"
    code, _, errors = run(capsys, "verify", checkpoint, "--server", "http://127.0.0.1:9")
    assert code == 2 and says(errors, f"an adapter of the run {served.path}", name), errors
    pretended = served.pretended(served.model("checkpoints/step-36"))
    assert verified(capsys, served, pretended, "--evaluation", name) == "run"


def test_few_questions_are_not_judged(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(served.pretended()) as address:
        code, out, _ = run(capsys, "verify", served.path, "--server", address, "--tasks", "obqa", "--limit", "7")
    assert code == 1 and says(out, "7 questions", "at least 8", "--limit"), out


def test_a_reply_with_another_end_of_line_is_kept(tmp_path: Path) -> None:
    reply = Reply("a/1", "text", "0", text="one\u2028two\u0085three")
    Replies(tmp_path).add(reply)
    assert Replies(tmp_path).get(reply.key) == reply


@pytest.mark.parametrize("key", ["a-secret\r", "a-secr\u00e9t", "a secret"])
def test_a_key_that_cannot_be_sent_is_not_shown(
    key: str, served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSLORA_SERVER_KEY", key)
    with serving(served.pretended(key="a-secret")) as address:
        code, out, errors = run(capsys, "verify", served.path, "--server", address, "--limit", "4")
    assert "secr" not in out + errors
    if key.strip() == "a-secret":
        assert code in (0, 1) and not errors, errors
    else:
        assert code == 2 and says(errors, "MOSLORA_SERVER_KEY", "ASCII"), errors


@pytest.mark.parametrize("address", ["localhost:8000", "http://[::1", "http://localhost:port"])
def test_an_address_that_is_none_is_told(address: str, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run(capsys, "verify", served.path, "--server", address)
    assert code == 2 and says(errors, f"--server {address}", "such as http://localhost:8000"), errors


def test_a_silent_server_does_not_hold_the_program(tmp_path: Path) -> None:
    """After Ctrl-C, while two questions wait for it."""
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    code = f"""
from pathlib import Path
from types import SimpleNamespace
from moslora.verify.interview import Interview
from moslora.verify.replies import Replies
from moslora.verify.server import open_server

server = open_server("http://127.0.0.1:{silent.getsockname()[1]}")
way = SimpleNamespace(name="tokens", reaches=lambda question: True)
way.key = lambda question: ("tokens", question.id, "")
way.reply = lambda question: server.ask("completions", {{}})
questions = [SimpleNamespace(id=id, length=1) for id in ("a/1", "a/2")]
Interview(Replies(Path({str(tmp_path)!r})), 2).ask(way, questions)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    silent.accept()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    silent.close()
    assert "KeyboardInterrupt" in errors
