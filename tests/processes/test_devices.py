"""What is said of this machine's devices, before anything is computed."""

from types import SimpleNamespace

import pytest
import torch

from message_kit import in_order, says
from moslora.errors import MosloraError, UsageError
from moslora.processes import devices, group


@pytest.fixture(autouse=True)
def not_hidden(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "gpus", lambda: 0)


@pytest.mark.parametrize(("cuda", "why"), [(None, "without CUDA"), ("13.0", "too old for CUDA 13.0")])
def test_an_nvidia_gpu_that_torch_does_not_see_is_named(monkeypatch, tmp_path, cuda, why):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    driver = tmp_path / "version"
    assert devices.unused_gpu(driver) is None
    driver.touch()
    assert says(str(devices.unused_gpu(driver)), "NVIDIA", why)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.unused_gpu(driver) is None


def test_old_drivers_that_cannot_connect_gpus_are_refused_with_the_variables(monkeypatch):
    monkeypatch.setattr(group, "gpus", lambda: 2)
    monkeypatch.setattr(group, "local_world_size", lambda: 2)
    monkeypatch.setattr(group, "check_cuda_p2p_ib_support", lambda: False)
    with pytest.raises(UsageError, match=in_order("RTX 40", "NCCL_P2P_DISABLE=1", "NCCL_IB_DISABLE=1")):
        group._check_gpus()
    for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"):
        monkeypatch.setenv(name, "1")
    group._check_gpus()


@pytest.mark.parametrize(
    ("fault", "fix"),
    [("no kernel image is available for execution on the device", "cu126"), ("out of memory", "CUDA_VISIBLE_DEVICES")],
)
def test_a_gpu_that_computes_nothing_is_refused(monkeypatch, fault, fix):
    """Such as a V100 under a torch for CUDA 13."""

    def wait(device):
        raise RuntimeError(f"CUDA error: {fault}\nCUDA kernel errors might be reported later")

    cpu = torch.device("cpu")
    module = SimpleNamespace(set_device=lambda device: None)
    for name, value in {"gpus": lambda: 1, "device": lambda: cpu, "gpu_module": lambda: module}.items():
        monkeypatch.setattr(group, name, value)
    monkeypatch.setattr(devices, "wait_for", wait)
    with pytest.raises(MosloraError, match=in_order(devices.device_name(cpu), fault, fix)) as refusal:
        group.take_gpu()
    assert "\n" not in str(refusal.value)


def test_unused_gpu_is_named(monkeypatch, capsys):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    devices.say_device.__wrapped__("cpu")
    assert says(capsys.readouterr().out, "device: CPU, ", "note: ", "MPS", "not used")


def test_a_gpu_of_amd_is_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(devices, "device_name", lambda _: "MI300X")
    devices.say_device.__wrapped__("cuda")
    assert says(capsys.readouterr().out, "device: MI300X\n", "note: ", "ROCm", "pads")
