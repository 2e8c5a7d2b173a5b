"""Processes that stand for nodes: what differs is refused with the rank named, and a fault of one ends all."""

import os
import socket
import sys
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.utils.distributed import get_free_port

from forked_kit import python
from message_kit import says
from moslora.errors import MosloraError
from moslora.processes import group
from moslora.processes.group import Shared, refuse_faults, refuse_other_facts
from moslora.processes.launch import launch
from moslora.training import train_recipe

HOST = socket.gethostname()
LOOPBACK = next(name for name, found in psutil.net_if_addrs().items() if any(a.address == "127.0.0.1" for a in found))

COMMAND = """
import os, torch
from moslora import cli
from moslora.base import identity
from moslora.training import loop
if "OTHER" in os.environ:
    found = identity._version_of
    identity._version_of = lambda name: "0.0" if name == "accelerate" else found(name)
if "FULL" in os.environ:
    accumulate, calls = loop.accumulate, []
    def short_of_memory(*arguments):
        calls.append(0)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return accumulate(*arguments)
    loop.accumulate = short_of_memory
cli.main()
"""


def on_two_nodes(tmp_path, *commands, **other):
    """A command for each of two nodes, as `srun` would start them, without a launcher; exit codes and errors.

    Each node has its own folder and cache; ``other`` is of the second one's environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank, command in enumerate(commands):
        (here := tmp_path / f"node{rank}").mkdir(exist_ok=True)
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "MOSLORA_HOME": str(here / "home")}
        environment = os.environ | place | {"CUDA_VISIBLE_DEVICES": ""} | (other if rank else {})
        started.append(python("-c", COMMAND, *command, cwd=here, env=environment))
    errors = [process.communicate(timeout=120)[1] for process in started]
    return [(process.returncode, said) for process, said in zip(started, errors, strict=True)]


@pytest.mark.slow
def test_node_with_other_facts_is_refused(recipe, world, tmp_path):
    source = f"data.source={world / 'data'}"
    (tmp_path / "node0").mkdir()
    run = tmp_path / "node0" / "run"
    train_recipe(recipe(source, "training.max_steps=4"), out=run)
    (run / "adapter").rename(tmp_path / "moved")
    rows = tmp_path / "rows"
    for file in (world / "data").rglob("*.json"):
        copy = rows / file.relative_to(world / "data")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text().replace("question: ", "question: so ", 1))
    command = ("train", world / "recipe.yaml", "--out", "run", "--resume", "training.max_steps=4")
    (code, told), (other, silent) = on_two_nodes(
        tmp_path, (*command, source), (*command, f"data.source={rows}"), OTHER="1"
    )
    assert code == other == 2 and silent == "", silent
    *lines, advice = told.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error"] * 4, told
    assert all(f"rank 1 on {HOST}: " in line and "on rank 0" in line for line in lines), told
    assert says(told, "first step is 0", "4 on rank 0") and says(told, "hash", "training rows")
    assert says(told, "hash", "tokens") and says(told, "accelerate", "0.0") and "run folder" in advice
    assert not (tmp_path / "node1" / "run").exists()


@pytest.mark.slow
def test_fault_of_one_node_is_reported_once(world, tmp_path):
    """The fault waits for the other, which still encodes, and is the other's end, too."""
    (code, told), (other, silent) = on_two_nodes(
        tmp_path, ("train", world / "recipe.yaml", "--out", "run"), ("train", "here.yaml", "--out", "run")
    )
    assert code == other == 2 and silent == "", silent
    assert told.startswith(f"error: rank 1 on {HOST}: here.yaml: ") and len(told.splitlines()) == 1
    assert not (tmp_path / "node0" / "run").exists()


@pytest.mark.slow
def test_fault_in_a_step_is_reported_once(world, tmp_path):
    command = ("train", world / "recipe.yaml", "--out", tmp_path / "run")
    (code, told), (other, silent) = on_two_nodes(tmp_path, command, command, FULL="1")
    assert code == other == 1
    assert says(told + silent, f"error: rank 1 on {HOST}: ", "GPU memory") and (told + silent).count("error: ") == 1


UNTIL_ALONE = """
import os
from moslora.processes.group import all_gather, end, process_group
try:
    with process_group({}, then="resume: it"):
        print("met over", os.environ["GLOO_SOCKET_IFNAME"], flush=True)
        while True:
            all_gather(None)
except Exception as error:
    end(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_at_once(killed):
    """Also rank 0, with which the store ends."""
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": ""}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())}
    both = [python("-c", UNTIL_ALONE, env=os.environ | place | {"RANK": rank}) for rank in "01"]
    for process in both:
        assert process.stdout and f"met over {default_interface()}\n" in (process.stdout.readline() for _ in range(2))
    other = both[1 - killed]
    both[killed].kill()
    _, said = other.communicate(timeout=20)
    both[killed].communicate()
    assert other.returncode == 1 and said.count("\n") == 1
    assert says(said, "another process has ended", "resume: it")


FAULTS = """
import datetime, sys, torch
from moslora.processes import group
from moslora.process_rank import rank
from torch import distributed as dist

def as_on_gpus():
    group.gpus = lambda: 1
    group.device = lambda: torch.device("cpu")
    form = dist.init_process_group
    dist.init_process_group = lambda backend, **options: form("gloo", **options)

def hangs():
    as_on_gpus()
    if rank() == 1:
        group._connect_gpus = lambda: group.time.sleep(60)

def aborts():
    as_on_gpus()
    def all_reduce(_):
        raise dist.DistBackendError(
            "NCCL error in: NCCLUtils.cpp:77, unhandled system error (run with NCCL_DEBUG=INFO for details)\\n"
            "ncclSystemError: System call (e.g. socket, malloc) or external library call failed.\\nLast error:\\n"
            "Error while creating shared memory segment /dev/shm/nccl-x, error: No space left on device (28)"
        )
    dist.all_reduce = all_reduce

def loses():
    def gather(*_):
        raise RuntimeError("[/pytorch/gloo/pair.cc:553] Connection closed by peer [::1]:9. This is typical.")
    dist.all_gather_object = gather

group.FIRST_EXCHANGE = group.REPORT = datetime.timedelta(seconds=1)
fault = globals()[sys.argv[1]]
try:
    if fault != loses:
        fault()
    with group.process_group({}, then="resume: it"):
        loses()
        group.all_gather(None)
except Exception as error:
    group.end(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("aborts", ("No space left on device", "--shm-size", "resume: it")),
        ("hangs", (LOOPBACK, "NCCL_DEBUG=INFO", "NCCL_SOCKET_IFNAME")),
        ("loses", ("another process has ended", "Connection closed by peer", "resume: it")),
    ],
)
def test_no_fault_of_the_connection_is_silent(capfd, fault, named):
    """Under our launcher, which reports killed processes alone."""
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # as the command line sets it
    command = [sys.executable, "-c", FAULTS, fault]
    assert launch(command, processes=2, then="", restarts=0, environment=quiet) == 1
    said = capfd.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and says(said, *named), said


def default_interface():
    """That of the default route; the loopback interface without one."""
    routes = Path("/proc/net/route")
    if not routes.exists():
        return LOOPBACK
    lines = [line.split() for line in routes.read_text().splitlines()]
    return next((line[0] for line in lines if line[1] == "00000000"), LOOPBACK)


def meeting(monkeypatch, *, here, address):
    """Two processes, so many of them on this machine, that are to meet at ``address``."""
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(here)}
    place |= {"MASTER_ADDR": address, "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)


def test_interface_is_that_of_the_route(monkeypatch):
    """Whatever this machine's name stands for; on the one at MASTER_ADDR the default route's, if others come."""
    for here, address, expected in (
        (2, "127.0.1.1", LOOPBACK),
        (1, "127.0.1.1", default_interface()),
        (1, "192.0.2.77", default_interface()),
    ):
        meeting(monkeypatch, here=here, address=address)
        assert group._interface() == expected


def test_processes_that_do_not_meet_name_the_interface(monkeypatch):
    meeting(monkeypatch, here=2, address="127.0.0.1")
    monkeypatch.setattr(group, "_joined", group.threading.Event())

    def fails(*_, **options):
        raise RuntimeError("Gloo connectFullMesh failed")

    monkeypatch.setattr(group.dist, "init_process_group", fails)
    for named in ("", "nosuch0"):
        monkeypatch.setenv(group.INTERFACE, named)
        if not named:
            monkeypatch.delenv(group.INTERFACE)
        with pytest.raises(MosloraError) as refusal:
            group._form_group(facts={})
        assert says(str(refusal.value), "MASTER_PORT", "connectFullMesh", group.INTERFACE, named or LOOPBACK)


AS_BY_NCCL = """
import torch, torch.distributed as dist
from moslora.processes import group
def gloo(store, rank, size, timeout):
    return dist.ProcessGroupGloo(store, rank, size, timeout=timeout)
dist.Backend.register_backend("another", gloo, devices=["cuda"])
dist.init_process_group("cpu:gloo,cuda:another", store=dist.HashStore(), rank=0, world_size=1, timeout=group.TIMEOUT)
backends = [dist.group.WORLD._get_backend(torch.device(device)) for device in ("cuda", "cpu")]
group.shorten_waits()
print(*(each.options._timeout for each in backends))
group.gpus = lambda: 1
group.device = lambda: torch.device("cuda", 0)
group.shorten_waits()
print(*(each.options._timeout for each in backends))
"""


def test_in_training_a_gpu_waits_half_an_hour_and_the_host_longer():
    """A second gloo stands for NCCL."""
    said, errors = python("-c", AS_BY_NCCL, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}).communicate(timeout=60)
    assert said.splitlines() == ["3:00:00 3:00:00", "0:30:00 3:00:00"], errors


def refused(found):
    with pytest.raises(Shared) as refusal:
        refuse_faults(found)
        refuse_other_facts(found)
    return str(refusal.value).splitlines(), refusal.value.exit_code


def test_faults_are_listed_each_once_and_the_first_gives_the_exit_code():
    found = [{"host": f"h{rank // 2}", "facts": {}} for rank in range(5)]
    for rank, fault, code in ((1, "no file\nno model", 2), (2, "no space", 1), (3, "no file\nno model", 2)):
        found[rank] = {"host": f"h{rank // 2}", "fault": fault, "exit_code": code}
    assert refused(found) == (["rank 1 on h0: no file", "rank 1 on h0: no model", "rank 2 on h1: no space"], 2)
    found[0] = {"host": "h0", "fault": "no space", "exit_code": 1}
    assert refused(found) == (["no space", "rank 1 on h0: no file", "rank 1 on h0: no model"], 1)
