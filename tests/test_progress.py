"""What a person at a terminal sees: one live line. A log has plain lines."""

import io
import json
import os
import pty
import re
import signal
import sys

import pytest
from rich.text import Text

from moslora.console import say
from moslora.progress import Line
from moslora.runs.run import Run
from moslora.training.tracking import Tracker
from training_kit import moslora

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
FIELDS = ("loss 1.235", "12.5 examples/s", "grad_norm 0.5", "learning_rate 0.0003", "1200 tokens/s", "peak 12.3 GB")


class Screen(io.StringIO):
    """An output that says it is a terminal."""

    def isatty(self):
        return True

    def lines(self):
        """What stands there at the end: each redrawing begins by erasing its line."""
        drawn = [line.rpartition("\r\x1b[2K")[2] for line in self.getvalue().split("\n")]
        return [Text.from_ansi(line).plain.rstrip() for line in drawn]


@pytest.fixture
def screen(monkeypatch):
    """``screen(columns)``: the standard output is a terminal of that width."""

    def set_up(columns=80):
        monkeypatch.setattr("rich._console", None)
        for name, value in {"COLUMNS": str(columns), "TERM": "xterm"}.items():
            monkeypatch.setenv(name, value)
        for name in ("NO_COLOR", "FORCE_COLOR", "RANK", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(sys, "stdout", shown := Screen())
        return shown

    return set_up


@pytest.mark.parametrize(("columns", "fields"), [(50, 0), (80, 2), (120, 4), (160, 6)])
def test_the_live_line_has_what_fits(screen, columns, fields):
    shown = screen(columns)
    with Line(31_932, "step 0/31932") as line:
        line.show(12_345, "step 12345/31932", *FIELDS)
        say("step 12345/31932  validation_loss 1.25")
    above, live, *rest = shown.lines()
    assert above == "step 12345/31932  validation_loss 1.25" and rest == [""]
    assert "step 12345/31932 ━" in live and live.endswith("  ".join(["left", *FIELDS[:fields]])), "whole fields"
    assert len(live) <= columns - len("^C")
    assert shown.getvalue().rindex(SHOW) > shown.getvalue().rindex(HIDE)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"RANK": "1"}])
def test_nothing_is_live_without_a_terminal(
    screen,
    monkeypatch,
    capsys,
    environment,
):
    with Line(2, "step 0/2") as line:
        line.show(1, "step 1/2")
    assert line.disable and capsys.readouterr().out == ""
    shown = screen(80)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with Line(2, "step 0/2") as line:
        line.show(1, "step 1/2")
    assert line.disable and shown.getvalue() == ""


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_a_fault_leaves_the_cursor(screen, fault):
    shown = screen(80)
    with pytest.raises(fault), Line(2, "step 0/2"):
        assert shown.getvalue().rindex(HIDE) > shown.getvalue().find(SHOW)
        raise fault
    assert shown.getvalue().rindex(SHOW) > shown.getvalue().rindex(HIDE) and sys.stdout is shown


def test_work_outlives_its_terminal(monkeypatch):
    monkeypatch.setattr("rich._console", None)
    monkeypatch.setenv("TERM", "xterm")
    master, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with Line(2, "step 0/2") as line:
            assert not line.disable
            os.close(master)
            say("a line that nobody reads")
            line.show(2, "step 2/2")


def five_steps(folder):
    """Takes five steps, recording the first and every second; the steps recorded."""
    with Line(5, "step 0/5") as line:
        tracker = Tracker(Run(folder), line, first_step=0, total_steps=5, log_every=2)
        for step in range(1, 6):
            tracker.log_step(step, tokens=10, examples=2, loss=1.0 / step)
    return [json.loads(text)["step"] for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_log_and_the_metrics_have_the_first_step_too(tmp_path, capsys):
    assert five_steps(tmp_path) == [1, 2, 4, 5]
    steps = [re.match(r"step (\d)/5  loss ", line) for line in capsys.readouterr().out.splitlines()]
    assert [step and step[1] for step in steps] == ["1", "2", "4", "5"]


def test_a_terminal_has_one_line_for_all_steps(screen, tmp_path):
    shown = screen(80)
    assert five_steps(tmp_path) == [1, 2, 4, 5]
    live, rest = shown.lines()
    assert "step 5/5 ━" in live and "loss 0.2" in live and not rest


@pytest.mark.slow
def test_ctrl_c_at_a_terminal(world, tmp_path):
    """The real command, its output and errors a terminal: asked for, so no error, and the cursor is there again."""
    master, terminal = pty.openpty()
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TERM": "xterm", "COLUMNS": "80"}
    command = "train", world / "recipe.yaml", "training.epochs=400", "--out", tmp_path / "run"
    process = moslora(*command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    seen, asked = b"", False
    while True:
        try:
            seen += os.read(master, 4096)
        except OSError:  # the end
            break
        if b"left  loss" in seen and not asked:
            process.send_signal(signal.SIGINT)
            asked = True
    assert process.wait() == 130
    text = seen.decode()
    assert "stopped after step" in text and "error" not in text and "min left" not in text
    assert text.rindex(SHOW) > text.rindex(HIDE)
