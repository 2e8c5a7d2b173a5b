"""Every planted fault, with the base asked or not, by log-probabilities and by texts.

Nothing but the run is ever called the run.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from cli_kit import run
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.runs.run import Run, base_of
from moslora.verify import verification
from reference import tiny_llama
from served_kit import Served, too_large
from server_kit import Pretended, serving

NEARBY = "checkpoints/step-72"

Fault = Callable[[Served], Pretended]


def small(served):
    """A model of another size with the same tokenizer."""
    model = tiny_llama(seed=5, vocab_size=len(served.tokenizer), layers=1, hidden_size=32)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # as sure of its answers as a trained model
    return model


FAULTS: Mapping[str, Fault] = {
    "the run": lambda served: served.pretended(),
    "its base": lambda served: served.pretended(served.model(base=True)),
    "the adapter at 0.9": lambda served: served.pretended(served.model(scale=0.9)),
    "a checkpoint nearby": lambda served: served.pretended(served.model(NEARBY)),
    "the same, which was evaluated": lambda served: served.pretended(served.model(NEARBY)),
    "a model of another size": lambda served: served.pretended(small(served)),
    "BOS twice in a text": lambda served: served.pretended(begins_text=(1,)),
    "BOS twice in tokens": lambda served: served.pretended(begins_tokens=(1,)),
    "another template": lambda served: served.pretended(wrap="user: {}\nassistant:"),
    "a context of 70 tokens": lambda served: served.pretended(context=70),
    "the same, which refuses longer ones": lambda served: served.pretended(context=70, refuses=True),
    "texts refused": lambda served: served.pretended(refuses_text=True),
}
IN_A_CHAT: Mapping[str, Fault] = {
    "the run, in a chat": lambda served: served.pretended(),
    "BOS twice in a chat": lambda served: served.pretended(begins_chat=(1,)),
    "another template of chats": lambda served: served.pretended(chat_wrap="system: be brief\n{}"),
    "chats refused": lambda served: served.pretended(without=("messages",)),
}


VERDICTS: Mapping[str, tuple[str, str, str, str]] = {
    "the run": ("run", "undecided", "undecided", "undecided"),
    "its base": ("base", "not the run", "base", "not the run"),
    "the adapter at 0.9": ("scale", "not the run", "undecided", "undecided"),
    "a checkpoint nearby": ("quantised", "not the run", "undecided", "undecided"),
    "the same, which was evaluated": ("checkpoint", "not the run", "undecided", "undecided"),
    "a model of another size": ("another model", "not the run", "another model", "not the run"),
    "BOS twice in a text": ("prompt", "prompt", "prompt", "prompt"),
    "BOS twice in tokens": ("prompt", "prompt", "prompt", "prompt"),
    "another template": ("prompt", "prompt", "prompt", "prompt"),
    "a context of 70 tokens": ("context", "context", "prompt", "prompt"),
    "the same, which refuses longer ones": ("context", "context", "undecided", "undecided"),
    "texts refused": ("undecided", "undecided", "undecided", "undecided"),
    "the run, in a chat": ("run", "undecided", "undecided", "undecided"),
    "BOS twice in a chat": ("prompt", "prompt", "prompt", "prompt"),
    "another template of chats": ("prompt", "prompt", "prompt", "prompt"),
    "chats refused": ("undecided", "undecided", "undecided", "undecided"),
}
"""By log-probabilities, the same where the base was not asked, by texts, and the same of these."""


def verdict(served, pretended, limit, capsys):
    """What the server is called; the exit code is 0 for the run alone."""
    with serving(pretended) as address:
        capsys.readouterr()
        code, out, errors = run(capsys, "verify", served.path, "--server", address, "--json", "--limit", limit or "all")
    found = json.loads(out)["verdict"]
    assert (code == 0) == (found == "run"), errors
    return found


@pytest.fixture(scope="module")
def chat_run(served_world):
    """Evaluated by ``choice`` in chats, 40 questions. Read only."""
    return served_world("data.format=chat", "evaluation.tasks=[arc_easy,obqa]")


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True], ids=["label", "chat"])
@pytest.mark.parametrize("protocol", ["choice", "generate"], ids=["scores", "texts"])
def test_every_fault_has_its_verdict(protocol, chat, request, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(verification, "evaluate_target", too_large)
    faults = IN_A_CHAT if chat else FAULTS
    original = request.getfixturevalue("chat_run" if chat else "choice_run").path
    served = Served(shutil.copytree(original.parent, tmp_path / "served") / "run", original)
    column = 0
    tells = "forced" if chat else "echo"
    limit = None
    if protocol == "generate":
        column = 2
        tells = "nothing"
        limit = 6 if chat else 4  # 12 questions
        shutil.rmtree(served.path / "eval")
        for of_base in (False, True):
            evaluate_target(open_target(str(served.path), base=of_base), protocol=protocol, limit=limit)
    base = base_of(Run(served.path).evaluation_folder())
    for name, make in faults.items():
        if name == "the same, which was evaluated":
            evaluate_target(open_target(str(served.path / NEARBY)), protocol=protocol, limit=limit)
        pretended = replace(make(served), tells=tells)
        with_base = verdict(served, pretended, limit, capsys)
        base.rename(served.path / "base")
        without = verdict(served, pretended, limit, capsys)
        (served.path / "base").rename(base)
        assert VERDICTS[name][column : column + 2] == (with_base, without), name
        assert (with_base == "run") == (protocol == "choice" and name in ("the run", "the run, in a chat"))
        assert without != "run"
