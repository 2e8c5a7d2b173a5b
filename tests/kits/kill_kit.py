"""Kills a command at each of its writes, gives it again, and compares with what it writes when nothing stops it.

A command runs in a forked process, in which all is imported already, in a working folder of its own that also has the
cache. Python's audit events tell of its changes to that folder: a file opened for writing or cut, a name made, moved or
removed. Three libraries write by themselves, and are told to say so.

A kill is SIGKILL right before a change, or, where a file is written, SIGXFSZ at half of its bytes: the signal of the
limit for the size of a file, at which nothing of Python runs either.
"""

import gc
import json
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pyarrow
import safetensors.torch
import torch
from transformers import PreTrainedTokenizerBase

from moslora.training.tracking import MEASURED

FOLDER = {"os.rename": 3, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1, "os.chmod": 2, "os.symlink": 2, "os.link": 3}
"""Audit events of changes to the disk, besides "open" for writing and "os.truncate", and which of their arguments is
the open folder that the changed name is in, or -1."""

TWO_NAMES = ("os.rename", "os.symlink", "os.link")
"""Those of them whose second argument is the name that is made."""

ADVICE = re.compile(r"(moslora train .* --resume)(;|$)", re.M)
"""The command that a refused training names."""


@dataclass(frozen=True)
class Command:
    """A command to be killed.

    Attributes:
        prepare: makes what is in the working folder before it.
        act: gives the command there; returns its exit code.
        advised: what the refused command names may be given instead; where the run was finished, nothing has to be.
    """

    name: str
    act: Callable[[], int]
    prepare: Callable[[], object] = lambda: None
    advised: bool = False


@dataclass(frozen=True)
class Write:
    """One change to the working folder, or a kill there: before it, or where its file has reached a size."""

    event: str
    path: str
    beside: bool  # not by the main thread, but by the one that saves checkpoints
    number: int  # among those of its thread
    half: int | None = None  # of the file's bytes

    def __str__(self) -> str:
        where = "before" if self.half is None else f"at {self.half} bytes of"
        return f"{where} write {self.number} of its thread, {self.event} {self.path}"


@dataclass(frozen=True)
class Findings:
    """What the kills of one command came to.

    Attributes:
        stuck: of each kill after which the command did not go on, where it was, and what was said.
        lost: of each after which it did, but to other files, where it was, and their paths.
        bytes_lost: of these files, as they should be.
    """

    command: str
    writes: int
    kills: int
    stuck: list[str]
    lost: list[str]
    bytes_lost: int

    @staticmethod
    def header() -> str:
        return f"{'command':34}{'writes':>8}{'kills':>8}{'did not go on':>15}{'bytes lost':>12}"

    def line(self) -> str:
        return f"{self.command:34}{self.writes:8,}{self.kills:8,}{len(self.stuck):15,}{self.bytes_lost:12,}"

    @staticmethod
    def of_all(findings: Sequence["Findings"]) -> "Findings":
        return Findings(
            "all",
            writes=sum(one.writes for one in findings),
            kills=sum(one.kills for one in findings),
            stuck=[line for one in findings for line in one.stuck],
            lost=[line for one in findings for line in one.lost],
            bytes_lost=sum(one.bytes_lost for one in findings),
        )


@dataclass(frozen=True)
class _Ended:
    status: int  # of os.waitpid
    said: str
    writes: list[Write]


def moslora(*words: object) -> Callable[[], int]:
    """Gives a command line."""

    def act() -> int:
        from moslora.cli import main

        sys.argv = ["moslora", *map(str, words)]
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return act


def kill_everywhere(command: Command, folder: Path, *, every: int = 1) -> Findings:
    """Kills ``command`` at each of its writes, or at one in ``every``.

    ``folder`` is empty or absent, and has the working folder in it.
    """
    start = folder / "start"
    work = folder / "work"
    start.mkdir(parents=True)
    prepared = _run(start, command.prepare)
    _expect_success(prepared, f"{command.name}: what it needs cannot be made")
    _lay(start, work)
    undisturbed = _run(work, command.act)
    _expect_success(undisturbed, f"{command.name} fails by itself")
    wanted = snapshot(work)
    kills = []
    for write in undisturbed.writes:
        kills += dict.fromkeys((replace(write, half=None), write))
    kills = kills[::every]
    stuck: list[str] = []
    lost: list[str] = []
    bytes_lost = 0
    for kill in kills:
        place = f"{command.name}: killed {kill}"
        _lay(start, work)
        killed = _run(work, command.act, kill=kill)
        if not os.WIFSIGNALED(killed.status):
            stuck.append(f"{place}: it ended by itself")
            continue
        again = _go_on(work, command)
        finished = command.advised and "not empty; choose" in again.said
        if again.status != 0 and not finished:
            last_line = again.said.strip().splitlines()[-1:]
            stuck.append(f"{place}: {last_line}")
            continue
        found = snapshot(work)
        different = sorted({path for path, _ in wanted.items() ^ found.items()})
        if different:
            lost.append(f"{place}: {', '.join(different)}")
        bytes_lost += sum(len(wanted.get(path) or b"") for path in different)
    return Findings(command.name, len(undisturbed.writes), len(kills), stuck, lost, bytes_lost)


def _go_on(work: Path, command: Command) -> _Ended:
    """Gives the command again, or what its refusal names."""
    again = _run(work, command.act)
    if again.status == 0 or not command.advised:
        return again
    advice = ADVICE.search(again.said)
    if advice is None:
        return again
    _, *words = shlex.split(advice[1])
    return _run(work, moslora(*words))


def snapshot(work: Path) -> dict[str, bytes | None]:
    """Path -> content, ``None`` of a folder. Of a run's metrics and card without the times and the memory measured.

    An empty scratch folder in the cache is left out: what it held is in its place, and nobody looks for it again.
    """
    found: dict[str, bytes | None] = {}
    for path in work.rglob("*"):
        if path.match("home/*/.*.writing") and not any(path.iterdir()):
            continue
        found[str(path.relative_to(work))] = _content(path)
    return found


def _content(path: Path) -> bytes | None:
    if path.is_dir():
        return None
    content = path.read_bytes()
    if path.name == "metrics.jsonl":
        rows = [json.dumps(_unmeasured(json.loads(line))) for line in content.splitlines()]
        return "".join(rows).encode()
    if path.name == "run.json":
        card = _unmeasured(json.loads(content))
        # The time of a scoring, which is left out of the card of one that was interrupted.
        card.get("experiment", {}).pop("scoring", None)
        return json.dumps(card).encode()
    return content


def _unmeasured(row: dict[str, Any]) -> dict[str, Any]:
    """A key stays, as it must be there."""
    return {key: "measured" if key in MEASURED else value for key, value in row.items()}


def _expect_success(ended: _Ended, fault: str) -> None:
    if ended.status != 0:
        raise AssertionError(f"{fault}:\n{ended.said[-3000:]}")


def _lay(start: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(start, work, symlinks=True)


def _run(work: Path, act: Callable[[], object], *, kill: Write | None = None) -> _Ended:
    """Runs ``act`` in ``work``, in a forked process, which is killed where ``kill`` says."""
    said_from, said_to = os.pipe()
    told_from, told_to = os.pipe()
    gc.freeze()  # no fork looks for cycles in all of torch and transformers
    process = os.fork()
    if process == 0:
        _act_and_exit(work, act, kill, output=said_to, told=told_to)
    os.close(said_to)
    os.close(told_to)
    with open(said_from, encoding="utf-8", errors="replace") as output, open(told_from, encoding="utf-8") as told:
        # What is told comes at the end, when all has been said.
        said = output.read()
        message = told.read()
    # A process that was killed has told nothing.
    listed, modules = json.loads(message or "[[], []]")
    for name in modules:  # what a process had to import is there for the next one
        with suppress(Exception):  # made by the process, or not to be imported alone
            import_module(name)
    _, status = os.waitpid(process, 0)
    return _Ended(status, said, [Write(*write) for write in listed])


def _act_and_exit(work: Path, act: Callable[[], object], kill: Write | None, *, output: int, told: int) -> NoReturn:
    """The forked process: ``output`` receives what it says, and ``told`` its writes and the modules it imported."""
    code = 99
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        # Not the parent's, which remember what they were connected to.
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
        os.chdir(work)
        os.environ["MOSLORA_HOME"] = str(work / "home")
        os.fsync = lambda _: None  # a kill, unlike a power cut, loses nothing that was written
        before = {*sys.modules}
        writes = _Writes(work, kill)
        returned = act()
        code = 0
        if isinstance(returned, int):
            code = returned
        sys.stdout.flush()
        sys.stderr.flush()
        modules = [name for name in sys.modules if name not in before]
        os.close(1)
        os.close(2)
        with open(told, "w", encoding="utf-8") as pipe:
            json.dump([[astuple(write) for write in writes.all()], modules], pipe)
    except BaseException:
        traceback.print_exc()
    finally:  # whatever happens, nothing of the parent's is done here
        with suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


class _Writes:
    """Notes every change to ``work`` from now on, and kills this process at that of ``kill``."""

    def __init__(self, work: Path, kill: Write | None) -> None:
        self._work = str(work)
        self._kill = kill
        self._seen: dict[bool, list[Write]] = {False: [], True: []}
        """Those of the main thread, and those beside it: which of two threads comes first is left to chance."""

        self._opened: dict[bool, tuple[str, int]] = {}
        """The last change of each, if it opened a file: its path, and its size before."""

        _announce_native_writers()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        sys.addaudithook(self._note)

    def all(self) -> list[Write]:
        for beside in self._seen:
            self._close_last(beside)
        return [*self._seen[False], *self._seen[True]]

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        cuts = event == "os.truncate" or (opens and arguments[2] & os.O_TRUNC)
        if not (opens or cuts or event in FOLDER):
            return
        path = _path(event, arguments)
        if not path.startswith(self._work):
            return
        beside = threading.current_thread() is not threading.main_thread()
        self._close_last(beside)
        seen = self._seen[beside]
        if self._kill is not None and (self._kill.beside, self._kill.number) == (beside, len(seen)):
            self._die(self._kill.half)
        seen.append(Write(event, os.path.relpath(path, self._work), beside, len(seen)))
        if cuts:
            self._opened[beside] = (path, 0)
        elif opens:
            self._opened[beside] = (path, _size(path))

    def _close_last(self, beside: bool) -> None:
        """Half the bytes of the file that a thread wrote last are known now."""
        if beside not in self._opened:
            return
        path, before = self._opened.pop(beside)
        added = _size(path) - before
        if added > 0:
            seen = self._seen[beside]
            seen[-1] = replace(seen[-1], half=before + added // 2)

    def _die(self, size: int | None) -> None:
        """At once, or where a file has reached this size."""
        if size is None:
            os.kill(os.getpid(), signal.SIGKILL)
            return
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _path(event: str, arguments: tuple[Any, ...]) -> str:
    """The absolute path that an event changes: of a move, the new name."""
    path = arguments[1] if event in TWO_NAMES else arguments[0]
    if isinstance(path, int):  # a descriptor
        return os.readlink(f"/proc/self/fd/{path}")
    base = os.getcwd()
    if event in FOLDER:
        descriptor = arguments[FOLDER[event]]
        if descriptor >= 0:
            base = os.readlink(f"/proc/self/fd/{descriptor}")
    return os.path.join(base, os.fsdecode(path))


def _announce_native_writers() -> None:
    """safetensors, pyarrow and tokenizers write without Python."""

    def wrap(owner: Any, name: str, path_of: Callable[..., object]) -> None:
        real = getattr(owner, name)

        def announced(*arguments: Any, **options: Any) -> Any:
            path = str(path_of(*arguments, **options))
            sys.audit("open", path, "w", os.O_WRONLY | os.O_TRUNC)
            return real(*arguments, **options)

        setattr(owner, name, announced)

    wrap(safetensors.torch, "serialize_file", lambda tensors, path, *_, **__: path)
    wrap(pyarrow.ipc, "new_file", lambda path, *_, **__: path)
    wrap(PreTrainedTokenizerBase, "save_pretrained", lambda self, folder, *_, **__: Path(folder) / "tokenizer.json")


def ready_to_fork() -> None:
    """A forked process has none of its parent's other threads, and all that its parent has computed."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with suppress(Exception):  # hundreds of patterns, which every load of a model compiles; another version has no such
        import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
