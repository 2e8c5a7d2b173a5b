"""The memory of a machine, a container or a job, against files as Linux' documentation of control groups has them."""

import os
from functools import partial

import pytest
import torch

from moslora.processes import devices

CASES: dict[str, tuple[dict[str, str], int | None]] = {
    "version 2, of a job around the step": (
        {
            "proc/self/cgroup": "0::/system.slice/job_7/step_0\n",
            "sys/fs/cgroup/memory.stat": "anon 5\n",
            "sys/fs/cgroup/system.slice/memory.max": "9000\n",
            "sys/fs/cgroup/system.slice/job_7/memory.max": "7000\n",
            "sys/fs/cgroup/system.slice/job_7/step_0/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/job_8/memory.max": "10\n",
        },
        7_000,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "9:cpu:/other\n4:memory:/jobs/a:b\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": "6000\n",
            "sys/fs/cgroup/memory/jobs/a:b/memory.limit_in_bytes": "6500\n",
            "sys/fs/cgroup/memory/other/memory.limit_in_bytes": "10\n",
        },
        6_000,
    ),
    "version 1, whose path is the host's": (
        {"proc/self/cgroup": "4:memory:/docker/7\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000\n"},
        5_000,
    ),
    "without control groups": ({}, None),
}


@pytest.mark.parametrize(("files", "limit"), CASES.values(), ids=CASES)
def test_memory_limit_of_control_groups(tmp_path, monkeypatch, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(devices, "_cgroup_limit", partial(devices._cgroup_limit, tmp_path))
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert devices.total_memory(torch.device("cpu")) == (limit or machine)
