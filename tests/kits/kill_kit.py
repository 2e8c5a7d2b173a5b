"""Kills a command at each of its writes, gives it again, and compares with what it writes when nothing stops it.

A command runs in a forked process, in which all is imported already, in a working folder of its own that also has the
cache. Python's audit events tell of its changes to that folder: a file opened for writing or cut, a name made, moved or
removed. Three libraries write by themselves, and are told to say so.

A kill is SIGKILL right before a change, or, where a file is written, SIGXFSZ at half of its bytes: the signal of the
limit for the size of a file, at which nothing of Python runs either.
"""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow
import safetensors.torch
import torch
from transformers import PreTrainedTokenizerBase

from moslora.training.tracking import MEASURED

FOLDER = {"os.rename": 3, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1, "os.chmod": 2, "os.symlink": 2, "os.link": 3}
"""Audit events of changes to the disk, besides "open" for writing and "os.truncate", and which of their arguments is
the open folder that the changed name is in, or -1."""

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
    """One change to the working folder: its event, the path, and where bytes are written the size to be killed at."""

    event: str
    path: str
    half: int | None = None

    def __str__(self) -> str:
        return f"{self.event} {self.path}"


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
    work, start = folder / "work", folder / "start"
    start.mkdir(parents=True)
    _expect(_run(start, command.prepare), 0, f"{command.name}: what it needs cannot be made")
    _lay(start, work)
    ended = _run(work, command.act)
    _expect(ended, 0, f"{command.name} fails by itself")
    writes, wanted = ended.writes, snapshot(work)
    stuck, lost, bytes_lost = [], [], 0
    kills = [(number, half) for number, write in enumerate(writes) for half in dict.fromkeys([None, write.half])]
    for number, half in kills[::every]:
        where = "before" if half is None else f"at {half} bytes of"
        place = f"{command.name}: killed {where} write {number}, {writes[number]}"
        _lay(start, work)
        killed = _run(work, command.act, kill=(number, half))
        if not os.WIFSIGNALED(killed.status):
            stuck.append(f"{place}: it ended by itself")
            continue
        again = _run(work, command.act)
        advice = ADVICE.search(again.said) if again.status and command.advised else None
        if advice:
            again = _run(work, moslora(*shlex.split(advice[1])[1:]))
        finished = command.advised and "a finished run;" in again.said
        if again.status and not finished:
            stuck.append(f"{place}: {again.said.strip().splitlines()[-1:]}")
        elif different := _differing(wanted, snapshot(work)):
            lost.append(f"{place}: {', '.join(different)}")
            bytes_lost += sum(len(wanted.get(path) or b"") for path in different)
    return Findings(command.name, len(writes), len(kills[::every]), stuck, lost, bytes_lost)


def _differing(wanted: dict[str, bytes | None], found: dict[str, bytes | None]) -> list[str]:
    """The paths that only one of them has, or that have another content."""
    changed = {path for path in wanted.keys() & found.keys() if wanted[path] != found[path]}
    return sorted(changed | (wanted.keys() ^ found.keys()))


def snapshot(work: Path) -> dict[str, bytes | None]:
    """Path -> content, ``None`` of a folder. Of a run's metrics and card without the times and the memory measured.

    An empty scratch folder in the cache is left out: what it held is in its place, and nobody looks for it again.
    """
    found: dict[str, bytes | None] = {}
    for path in work.rglob("*"):
        if path.match("home/*/.*.writing") and not any(path.iterdir()):
            continue
        name, content = str(path.relative_to(work)), None if path.is_dir() else path.read_bytes()
        if content is not None and path.name == "metrics.jsonl":
            content = b"".join(json.dumps(_unmeasured(json.loads(line))).encode() for line in content.splitlines())
        if content is not None and path.name == "run.json":
            content = json.dumps(_unmeasured(json.loads(content))).encode()
        found[name] = content
    return found


def _unmeasured(row: dict[str, Any]) -> dict[str, Any]:
    """A key stays, as it must be there."""
    return {key: "measured" if key in MEASURED else value for key, value in row.items()}


@dataclass(frozen=True)
class _Ended:
    status: int  # of os.waitpid
    said: str
    writes: list[Write]


def _expect(ended: _Ended, status: int, fault: str) -> None:
    if ended.status != status:
        raise AssertionError(f"{fault}:\n{ended.said[-3000:]}")


def _lay(start: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(start, work, symlinks=True)


def _run(work: Path, act: Callable[[], object], *, kill: tuple[int, int | None] | None = None) -> _Ended:
    """Runs ``act`` in ``work``, in a forked process. ``kill``: at the write of this number, if given at this size."""
    output, told = os.pipe(), os.pipe()
    if process := os.fork():
        for pipe in (output, told):
            os.close(pipe[1])
        with open(output[0], encoding="utf-8", errors="replace") as said, open(told[0], encoding="utf-8") as writes:
            # The list comes at the end, when all has been said.
            text, told_last = said.read(), writes.read()
        listed, modules = json.loads(told_last or "[[], []]")
        _import(modules)
        return _Ended(os.waitpid(process, 0)[1], text, [Write(*write) for write in listed])
    code = 99
    try:
        os.dup2(output[1], 1)
        os.dup2(output[1], 2)
        os.close(output[1])
        # Not the parent's, which remember what they were connected to.
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
        os.chdir(work)
        os.environ["MOSLORA_HOME"] = str(work / "home")
        before, seen = {*sys.modules}, _watch(work, kill)
        returned = act()
        code = returned if isinstance(returned, int) else 0
        sys.stdout.flush()
        sys.stderr.flush()
        listed = [[write.event, write.path, write.half] for write in seen()]
        modules = [name for name in sys.modules if name not in before]
        os.close(1)
        os.close(2)
        with open(told[1], "w", encoding="utf-8") as pipe_end:
            json.dump([listed, modules], pipe_end)
    except BaseException:
        traceback.print_exc()
    finally:  # whatever happens, nothing of the parent's is done here
        with suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def _import(modules: list[str]) -> None:
    """What a process had to import is there for the next one."""
    for name in modules:
        with suppress(Exception):  # made by the process, or not to be imported alone
            import_module(name)


def _watch(work: Path, kill: tuple[int, int | None] | None) -> Callable[[], list[Write]]:
    """Notes every change to ``work`` from now on, and kills this process at that of the number in ``kill``."""
    _announce_native_writers()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    seen: list[Write] = []
    opened: list[tuple[str, int]] = []  # the last change, if it opened a file: its path, and its size before

    def size(path: str) -> int:
        try:
            return os.stat(path).st_size
        except OSError:
            return 0

    def close_last() -> None:
        if opened:
            path, before = opened.pop()
            if (added := size(path) - before) > 0:
                seen[-1] = Write(seen[-1].event, seen[-1].path, before + added // 2)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "os.truncate" or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if not (writes or event in FOLDER):
            return
        path = _path(event, arguments)
        if not path.startswith(str(work)):
            return
        close_last()
        if kill and kill[0] == len(seen):
            if kill[1] is None:
                os.kill(os.getpid(), signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (kill[1], resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        seen.append(Write(event, os.path.relpath(path, work)))
        if writes:
            cut = event == "os.truncate" or arguments[2] & os.O_TRUNC
            opened.append((path, 0 if cut else size(path)))

    sys.addaudithook(note)

    def all_seen() -> list[Write]:
        close_last()
        return seen

    return all_seen


def _path(event: str, arguments: tuple[Any, ...]) -> str:
    """The absolute path that an event changes: of a move, the new name."""
    moved = event in ("os.rename", "os.symlink", "os.link")
    path = arguments[1 if moved else 0]
    if isinstance(path, int):  # a descriptor
        return os.readlink(f"/proc/self/fd/{path}")
    folder = arguments[FOLDER[event]] if event in FOLDER else -1
    base = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd()
    return os.path.join(base, os.fsdecode(path))


def _announce_native_writers() -> None:
    """safetensors, pyarrow and tokenizers write without Python."""

    def announce(path: object) -> None:
        sys.audit("open", str(path), "w", os.O_WRONLY | os.O_TRUNC)

    def wrap(owner: Any, name: str, path_of: Callable[..., object]) -> None:
        real = getattr(owner, name)

        def announced(*arguments: Any, **options: Any) -> Any:
            announce(path_of(*arguments, **options))
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
