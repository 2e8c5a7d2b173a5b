"""`moslora verify`: a server is named what it computes, whatever it tells, and a fault is named as what it is."""

import json
import shutil
from pathlib import Path

import pytest

from changes_kit import edit_json, replace
from cli_kit import run
from message_kit import says
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.runs.evaluation import read_predictions
from moslora.runs.run import Run, base_of
from moslora.verify import verification
from served_kit import too_large
from server_kit import dies, half, serving, slow, status

NOWHERE = "http://127.0.0.1:9"


def verified(capsys, path, pretended, *options):
    """The verdict's kind; the exit code is 0 for the run alone."""
    capsys.readouterr()  # of a training
    with serving(pretended) as address:
        code, out, errors = run(capsys, "verify", path, "--server", address, "--json", *options)
    found = json.loads(out)
    assert (code == 0) == (found["verdict"] == "run") == found["passed"], errors
    return str(found["verdict"])


def answers(served):
    """What the server has answered so far."""
    (folder,) = (served.path / "verify").iterdir()
    return read_predictions(folder)


@pytest.mark.parametrize("tells", ["echo", "forced", "allowed", "likeliest"])
@pytest.mark.parametrize("takes_tokens", [True, False])
def test_every_reading_gives_the_scores_of_eval(tells, takes_tokens, served, capsys, monkeypatch):
    if tells == "likeliest":
        monkeypatch.setattr("moslora.evaluation.reading.LIKELIEST", (len(served.tokenizer),))
    assert verified(capsys, served.path, served.pretended(tells=tells, takes_tokens=takes_tokens)) == "run"
    own = {one.id: one.scores for one in read_predictions(Run(served.path).evaluation_folder())}
    told = answers(served)
    assert len(told) == 60
    for prediction in told:
        assert prediction.scores == pytest.approx(own[prediction.id], abs=1e-4)


@pytest.mark.parametrize(
    ("tells", "options", "code", "named"),
    [
        ("likeliest", (), 1, ("no question was answered", "not told in whole")),
        ("nothing", (), 2, ("no log-probabilities", "--protocol generate")),
        ("echo", ("--tasks", "obqa", "--limit", "7"), 1, ("7 questions", "at least 8", "--limit")),
    ],
)
def test_missing_answers_are_one_line(tells, options, code, named, served, capsys):
    with serving(served.pretended(tells=tells)) as address:
        ended, out, errors = run(capsys, "verify", served.path, "--server", address, *options)
    assert ended == code and says(out + errors, *named), out + errors


@pytest.mark.parametrize("trouble", [status(429), status(500), status(503), half, dies, slow(0.05)])
def test_passing_fault_is_retried(trouble, served, capsys):
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
        (half, "not that of OpenAI's interface"),
        (dies, "connection was lost"),
    ],
)
def test_lasting_fault_is_one_line(trouble, named, served, capsys):
    pretended = served.pretended(always=trouble, after=40)
    with serving(pretended) as address:
        command = ("verify", served.path, "--server", address, "--at-once", "1")
        code, _, errors = run(capsys, *command)
        kept = len(answers(served))
        assert code == 1 and errors.count("\n") == 1 and 0 < kept < 60
        assert says(errors, address, named, f"{kept} answers are kept"), errors
        pretended.always = None
        pretended.asked.clear()
        assert run(capsys, *command)[0] == 0
    again = [body for body in pretended.asked if body.get("echo") and isinstance(body["prompt"], list)]
    options = 4  # at most, of a question
    assert len(again) <= (60 - kept + 4) * options, "what was answered is not asked again"


@pytest.mark.parametrize("fault", ["scale", "a context that cuts", "a context that refuses"])
def test_a_server_that_was_mended_is_asked_anew(fault, served, capsys):
    """Under the same address, also by a change that moves no answer far, or that of the longest questions only."""
    pretended = served.pretended(
        served.model(scale=0.9 if fault == "scale" else 1.0), refuses=fault.endswith("refuses")
    )
    if fault != "scale":
        pretended.context = 70
    with serving(pretended) as address:
        code, out, _ = run(capsys, "verify", served.path, "--server", address)
        assert code == 1 and ("a wrong scale" if fault == "scale" else "the context is cut") in out, out
        pretended.model, pretended.context = served.model(), None
        code, out, _ = run(capsys, "verify", served.path, "--server", address)
    assert code == 0 and "computes this run" in out, out


def sorted_answers(folder):
    return sorted(read_predictions(folder), key=lambda each: each.id)


@pytest.mark.parametrize("asked", ["neither", "the run"])
def test_missing_answers_are_scored_first(asked, served, capsys):
    own = Run(served.path).evaluation_folder()
    before = [sorted_answers(folder) for folder in (own, base_of(own))]
    shutil.rmtree(base_of(own) if asked == "the run" else own.parent)
    with serving(served.pretended(served.model(base=True))) as address:
        code, out, errors = run(capsys, "verify", served.path, "--server", address)
        assert code == 1 and says(out, "before verifying", base_of(own), "computes its base"), out + errors
        assert out.count("before verifying") == (1 if asked == "the run" else 2)
    assert [sorted_answers(folder) for folder in (own, base_of(own))] == before
    with serving(served.pretended()) as address:
        code, out, errors = run(capsys, "verify", served.path, "--server", address)
    assert code == 0 and "before verifying" not in out and "computes this run" in out, out + errors


@pytest.mark.parametrize(
    ("target", "address", "code", "named"),
    [
        ("run", NOWHERE, 1, ("no server there; start it",)),
        ("runn", NOWHERE, 2, ("no such run", "did you mean")),
        ("run", "localhost:8000", 2, ("--server localhost:8000", "http://localhost:8000")),
        ("run", "http://[::1", 2, ("--server http://[::1",)),
    ],
)
def test_missing_server_is_refused_first(target, address, code, named, served, capsys):
    shutil.rmtree(served.path / "eval")
    path = served.path if target == "run" else served.path.with_name("runn")
    ended, _, errors = run(capsys, "verify", path, "--server", address)
    assert ended == code and says(errors, *named) and errors.count("\n") == 1, errors
    assert not (served.path / "eval").exists()


def merged(capsys, served):
    assert run(capsys, "merge", served.path)[0] == 0
    return served.path / "merged"


def test_merged_model_is_compared_with_its_base(served, capsys, tmp_path, monkeypatch):
    """By log-probabilities also where its folder says otherwise: texts would show no scale."""
    monkeypatch.chdir(tmp_path)
    model = merged(capsys, served)
    elsewhere = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    edit_json(elsewhere / "origin.json", base=str(Run(served.path).recipe.model.name))
    replace(elsewhere / "moslora.yaml", "protocol: choice", "protocol: generate")
    for folder in (model, elsewhere):
        assert verified(capsys, folder, served.pretended(served.model(base=True))) == "base"
        assert verified(capsys, folder, served.pretended()) == "run"
    assert len(list(Path("runs").glob("eval-*/choice-label-float32-base"))) == 2


@pytest.mark.parametrize("base", ["not known", "another", "too large for this machine"])
def test_without_the_base_nothing_is_the_run(base, served, capsys, tmp_path, monkeypatch):
    """Of a merged model, or of a run."""
    monkeypatch.chdir(tmp_path)
    if base == "too large for this machine":
        target = served.path
        shutil.rmtree(base_of(Run(target).evaluation_folder()))
        monkeypatch.setattr(verification, "evaluate_target", too_large)
    else:
        target = merged(capsys, served)
        if base == "another":
            edit_json(target / "origin.json", fingerprint="0" * 16)
        else:
            (target / "origin.json").unlink()
    with serving(served.pretended()) as address:
        code, out, _ = run(capsys, "verify", target, "--server", address)
    assert code == 1 and says(
        out, "the base could not be scored", "nothing speaks against this run", "may be as close"
    ), out
    assert verified(capsys, target, served.pretended(served.model(base=True))) == "not the run"


@pytest.mark.parametrize(
    ("key", "named"),
    [("", "401"), ("a-secret", ""), ("a-secret\r", ""), ("a-secr\u00e9t", "ASCII"), ("a secret", "ASCII")],
)
def test_a_key_is_sent_and_written_nowhere(key, named, served, capsys, monkeypatch):
    monkeypatch.setenv("MOSLORA_SERVER_KEY", key)
    with serving(served.pretended(key="a-secret")) as address:
        code, out, errors = run(capsys, "verify", served.path, "--server", address)
    assert code == (2 if named else 0) and "secr" not in out + errors
    assert not named or (named in errors and "MOSLORA_SERVER_KEY" in errors), errors
    for path in served.path.rglob("*"):
        assert not path.is_file() or b"a-secret" not in path.read_bytes()


def test_no_other_address_is_spoken_to(served, capsys, monkeypatch):
    """Neither a proxy nor where the server sends us."""
    elsewhere = served.pretended()
    with serving(elsewhere) as other:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other)
        with serving(served.pretended(always=status(307, Location=f"{other}/v1/completions"))) as address:
            code, _, errors = run(capsys, "verify", served.path, "--server", address)
    assert code == 2 and says(errors, "307", other) and not elsewhere.asked


def test_of_several_models_one_is_named(served, capsys):
    pretended = served.pretended(models=("base", "mine"))
    with serving(pretended) as address:
        code, _, errors = run(capsys, "verify", served.path, "--server", address)
        assert code == 2 and says(errors, "several models", "--model", "base, mine")
        assert run(capsys, "verify", served.path, "--server", address, "--model", "mine")[0] == 0
    assert {body["model"] for body in pretended.asked} == {"mine"}


@pytest.mark.slow
def test_options_that_are_texts(served_world, capsys):
    served = served_world("evaluation.protocol=cloze", "data.format=cloze", "training.micro_batch_tokens=2000")
    assert verified(capsys, served.path, served.pretended()) == "run"
    assert verified(capsys, served.path, served.pretended(served.model(base=True))) == "base"


def test_first_question_may_exceed_the_context(served, capsys):
    """How the server is asked is found with the shortest; those that fit are too few for a verdict here."""
    pretended = served.pretended()
    verified(capsys, served.path, pretended)
    lengths = sorted({len(body["prompt"]) for body in pretended.asked if body.get("echo")})
    assert verified(capsys, served.path, served.pretended(context=lengths[1], refuses=True)) == "undecided"


def test_answers_of_weights_that_are_gone_are_refused(served, capsys):
    """As after more training: the server would be called another checkpoint."""
    shutil.rmtree(served.path / "adapter")
    shutil.copytree(served.path / "checkpoints" / "step-36", served.path / "adapter")
    code, _, errors = run(capsys, "verify", served.path, "--server", "http://127.0.0.1:9")
    assert code == 2 and says(errors, "other weights than", "moslora eval"), errors


def test_checkpoint_is_verified_by_its_evaluation(served, capsys):
    checkpoint = served.path / "checkpoints" / "step-36"
    evaluate_target(open_target(str(checkpoint)))
    name = Run(served.path).evaluation_folder().name + "-step-36"
    pretended = served.pretended(served.model("checkpoints/step-36"))
    assert verified(capsys, served.path, pretended, "--evaluation", name) == "run"
    assert verified(capsys, served.path, served.pretended(), "--evaluation", name) != "run"
    with serving(pretended) as address:
        code, out, errors = run(capsys, "verify", checkpoint, "--server", address)
    assert code == 0 and says(out, name, "computes this run"), out + errors
