"""Python in processes of their own that begin with all imported already.

The imports of a command take seconds of processor time. One process, started for the first of them, has imported what
they need and forks for each; it does nothing else. What reads the environment at its import, and what a launcher
starts, needs ``subprocess``.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from importlib import import_module
from typing import IO, Any

IMPORTED = ("moslora.training", "moslora.evaluation.evaluate_target", "moslora.cli.main", "transformers.models.llama")
READ_AT_IMPORT = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""As the command line sets them, on a CPU and in one of several processes."""

LARGEST = 1 << 17
"""Bytes of a message, which has a command and its environment."""


def python(*arguments: object, **options: Any) -> "Forked | subprocess.Popen[str]":
    """``python ARGUMENTS``, with -m, -c or a file; ``options``: ``env``, ``cwd``, ``stdout`` and ``stderr`` of a Popen.

    Where no GPU may be used, and on Linux, it is a forked process.
    """
    words = [str(argument) for argument in arguments]
    options = {"env": dict(os.environ), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    if sys.platform == "linux" and options["env"].get("CUDA_VISIBLE_DEVICES") == "":
        return Forked(words, **options)
    return subprocess.Popen([sys.executable, *words], text=True, **options)


class Forked:
    """A forked process. Attributes and methods are those of ``subprocess.Popen`` with ``text=True``."""

    def __init__(self, words: list[str], *, env: dict[str, str], stdout: int, stderr: int, cwd: object = "") -> None:
        self.args = words
        self.returncode: int | None = None
        self.stdout, output = _end_of(stdout)
        self.stderr, errors = _end_of(stderr)
        request = {"words": words, "env": env, "cwd": os.path.abspath(str(cwd))}
        self.pid = _ask(request, [output, errors])
        for own, given in ((output, stdout), (errors, stderr)):
            if given == subprocess.PIPE:
                os.close(own)
        self._ended = os.pidfd_open(self.pid)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Output and errors until the process, and all that it has started, has closed them."""
        found = ["", ""]

        def read(place: int, pipe: IO[str]) -> None:
            with pipe:
                found[place] = pipe.read()

        pipes = [(place, pipe) for place, pipe in enumerate((self.stdout, self.stderr)) if pipe and not pipe.closed]
        readers = [threading.Thread(target=read, args=one, daemon=True) for one in pipes]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return found[0], found[1]

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._ended, select.POLLIN)
            if not ended.poll(None if timeout is None else 1000 * timeout):
                return None
            self.returncode = _ask({"ended": self.pid}, [])
            os.close(self._ended)
        return self.returncode


def _end_of(given: int) -> tuple[IO[str] | None, int]:
    """Our end of a pipe, and the descriptor that the process writes to."""
    if given != subprocess.PIPE:
        return None, given
    reading, writing = os.pipe()
    return open(reading, encoding="utf-8", errors="replace"), writing


@cache
def _server() -> tuple[socket.socket, subprocess.Popen[str]]:
    """The process that forks, and our end of the channel to it.

    Its output and errors are pipes, as those of most of its forks: Python looks at its start whether they are files.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = f"import sys; sys.path[:] = {sys.path!r}; from forked_kit import serve; serve({theirs.fileno()})"
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | READ_AT_IMPORT,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours, server


def _ask(request: dict[str, Any], descriptors: list[int]) -> int:
    channel, server = _server()
    socket.send_fds(channel, [json.dumps(request).encode()], descriptors)
    answer = channel.recv(LARGEST)
    assert answer, server.communicate()
    return int(answer)


def serve(descriptor: int) -> None:
    """Forks for each request, until the channel is closed. In a fork it returns when the command has."""
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # as the command line does at its end: no fork looks for cycles in all of torch and transformers
    channel = socket.socket(fileno=descriptor)
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, LARGEST, 2)
        if not message:
            return
        request = json.loads(message)
        if "ended" in request:
            _, status = os.waitpid(request["ended"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                channel.close()
                _become(request, descriptors)
                return
            for each in descriptors:
                os.close(each)
        channel.send(str(answer).encode())


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Runs a command as the interpreter does."""
    for given, own in zip(descriptors, (1, 2), strict=True):
        os.dup2(given, own)
        os.close(given)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for path in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if path and path not in sys.path:
            sys.path.append(path)
    kind, *words = request["words"]
    if kind == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *words[1:]]
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [kind, *words]
        runpy.run_path(kind, run_name="__main__")
