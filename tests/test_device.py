"""Devices, precisions, and readings of memory and arithmetic."""

from __future__ import annotations

import time
from functools import reduce
from pathlib import Path

import psutil
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gptlab import device
from gptlab.device import (
    _container_memory,
    available_memory,
    current_memory,
    describe_device,
    measure_peak_flops,
    peak_memory,
    pick_device,
    pick_precision,
)
from gptlab.errors import DeviceError

CPU = torch.device("cpu")
MATMUL = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


def test_auto_takes_the_fastest_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPTLAB_DEVICE", raising=False)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    assert pick_device().type == next(name for name, has in there.items() if has)


def test_the_environment_overrides_auto_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTLAB_DEVICE", "cpu")
    assert pick_device() == CPU
    monkeypatch.setenv("GPTLAB_DEVICE", "abacus")
    assert pick_device("cpu") == CPU
    with pytest.raises(DeviceError, match=r"device 'abacus': this machine has .*cpu"):
        pick_device("auto")


@pytest.mark.parametrize("name", ["cuda:97", "gpu", "CPU", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="this machine has"):
        pick_device(name)


def test_precision_on_a_cpu() -> None:
    auto = pick_precision("auto", CPU)
    in_hardware = any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_tile"))
    assert auto.name == ("bfloat16" if in_hardware else "float32")
    assert auto.dtype == getattr(torch, auto.name)
    assert auto.reason
    assert pick_precision("float32", CPU).dtype == torch.float32
    assert pick_precision("bfloat16", CPU).dtype == torch.bfloat16
    with pytest.raises(DeviceError, match=r"'float16': is for GPUs; on a CPU take float32 or bfloat16"):
        pick_precision("float16", CPU)
    with pytest.raises(DeviceError, match=r"precision 'int8': wanted auto, float32, bfloat16, float16"):
        pick_precision("int8", CPU)  # type: ignore[arg-type]


def test_precision_on_mps_is_float32() -> None:
    assert pick_precision("auto", torch.device("mps")).name == "float32"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_readings_on_cuda() -> None:
    device = pick_device("cuda")
    native = torch.cuda.get_device_capability(device) >= (8, 0)
    assert pick_precision("auto", device).name == ("bfloat16" if native else "float16")
    before = available_memory(device)
    block = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert before - available_memory(device) >= 0.9 * block.nbytes
    assert peak_memory(device) >= block.nbytes
    assert measure_peak_flops(device, torch.float32) > 1e11
    assert torch.cuda.get_device_name(device) in describe_device(device)


def test_available_memory_is_less_than_there_is() -> None:
    assert 0 < available_memory(CPU) < psutil.virtual_memory().total


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def write_process(root: Path, lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)


def test_limits_of_control_groups_2_count_at_every_level(tmp_path: Path) -> None:
    write_process(tmp_path, "0::/slice/job\n")
    top = tmp_path / "sys/fs/cgroup"
    cache = "anon 100\ninactive_file 250\nactive_file 5\n"
    write_group(top / "slice", memory__max="1000\n", memory__current="900\n", memory__stat=cache)
    write_group(top / "slice/job", memory__max="max\n", memory__current="800\n", memory__stat=cache)
    assert list(_container_memory(tmp_path)) == [350]
    write_group(top / "slice/job", memory__max="900\n")
    assert sorted(_container_memory(tmp_path)) == [350, 350]
    write_group(top / "slice/job", memory__max="500\n", memory__stat="")
    assert sorted(_container_memory(tmp_path)) == [0, 350]


def test_limits_of_control_groups_1(tmp_path: Path) -> None:
    write_process(tmp_path, "9:name=systemd:/x\n4:cpu,memory:/docker/abc\n0::/\n")
    top = tmp_path / "sys/fs/cgroup/memory"
    # Inside a container the path that the process is told leads nowhere: the top is the container's own group.
    write_group(
        top, memory__limit_in_bytes="2000", memory__usage_in_bytes="500", memory__stat="total_inactive_file 100\n"
    )
    assert list(_container_memory(tmp_path)) == [1600]
    write_group(top / "docker/abc", memory__limit_in_bytes="700", memory__usage_in_bytes="400")
    assert list(_container_memory(tmp_path)) == [300, 1600]


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert list(_container_memory(tmp_path)) == []


def test_current_and_peak_follow_what_is_allocated() -> None:
    before = current_memory()
    block = torch.ones(2**26, dtype=torch.uint8)
    with_block = current_memory()
    assert with_block - before > 0.8 * block.nbytes
    del block
    assert current_memory() < with_block - 2**25
    assert peak_memory(CPU) > 0.98 * with_block  # the kernel counts pages in batches, so not to the byte


def test_the_measured_peak_is_plausible_short_and_kept() -> None:
    measure_peak_flops.cache_clear()
    started = time.perf_counter()
    first = measure_peak_flops(CPU, torch.float32)
    assert time.perf_counter() - started < 1.5  # 0.2 s, and more where the machine is busy
    assert 1e9 < first < 1e14
    assert measure_peak_flops(CPU, torch.float32) == first


def test_a_device_is_described_in_words() -> None:
    assert describe_device(CPU).startswith("CPU, ")
    assert describe_device(CPU).endswith(("core", "cores"))


def test_sums_are_float64_where_the_device_has_it() -> None:
    value = device.in_float64(torch.tensor(1 / 3, dtype=torch.bfloat16))
    assert value.dtype == torch.float64
    with FakeTensorMode():
        for name, place in (("mps", "cpu"), ("cuda", "cuda"), ("cpu", "cpu")):
            value = device.in_float64(torch.ones((), device=name))
            assert (value.device.type, value.dtype) == (place, torch.float64)


class TestFloat32Products:
    @pytest.fixture(autouse=True)
    def _no_setting(self):
        MATMUL.fp32_precision = "none"  # another test's torch.set_float32_matmul_precision may have left one

    def test_are_those_of_float32_and_the_setting_is_put_back(self):
        before = torch.get_float32_matmul_precision()
        a, b = (torch.randn(300, 300, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
        exact = a.double() @ b.double()
        with device.float32_products(torch.device("cpu")) as chosen:
            assert chosen in ("oneDNN", "default")
            assert ((a @ b - exact).norm() / exact.norm()).item() < 2e-6
        assert (torch.get_float32_matmul_precision(), MATMUL.fp32_precision) == (before, "none")

    def test_a_cpu_that_rounds_is_found_out(self, monkeypatch):
        monkeypatch.setattr(device.F, "linear", lambda a, b: (a.bfloat16() @ b.bfloat16().t()).float())
        with device.float32_products(torch.device("cpu")) as chosen:
            assert (chosen, MATMUL.fp32_precision) == ("default", "none")

    def test_a_run_goes_on_with_what_it_began_with(self):
        with device.float32_products(CPU, "default") as chosen:
            assert (chosen, MATMUL.fp32_precision) == ("default", "none")
        with device.float32_products(CPU) as first:
            pass
        with device.float32_products(CPU, first) as again:
            assert again == first

    def test_what_was_kept_on_another_machine_is_probed_here(self, monkeypatch):
        monkeypatch.setattr(device.F, "linear", lambda a, b: (a.bfloat16() @ b.bfloat16().t()).float())
        said: list[str] = []
        with device.float32_products(CPU, "oneDNN", said.append) as chosen:
            assert (chosen, MATMUL.fp32_precision) == ("default", "none")
        with device.float32_products(CPU, None, said.append) as chosen:
            assert chosen == "default"
        assert len(said) == 1
        assert said[0].startswith("float32 products: oneDNN, which this run began with, rounds them on this machine")

    def test_no_random_number_is_drawn(self):
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        with device.float32_products(torch.device("cpu")):
            assert torch.equal(torch.rand(1), expected)

    def test_another_setting_of_the_user_is_left_alone(self):
        torch.set_float32_matmul_precision("high")
        try:
            with device.float32_products(torch.device("cpu")) as chosen:
                assert (chosen, torch.get_float32_matmul_precision()) == ("default", "high")
        finally:
            torch.set_float32_matmul_precision("highest")

    @pytest.mark.parametrize(
        ("where", "setting"),
        [
            *(("mkldnn.matmul", setting) for setting in ("ieee", "tf32", "bf16")),
            *(("cuda.matmul", setting) for setting in ("ieee", "tf32")),
            *(("", setting) for setting in ("ieee", "tf32", "bf16")),
        ],
    )
    def test_settings_of_the_newer_kind(self, where, setting):
        theirs = reduce(getattr, filter(None, where.split(".")), torch.backends)
        theirs.fp32_precision = setting  # from here on torch.get_float32_matmul_precision() may be an error
        before = MATMUL.fp32_precision
        try:
            with device.float32_products(CPU) as chosen:
                expected = "bf16" if chosen == "oneDNN" else before
                assert MATMUL.fp32_precision == expected
            assert (MATMUL.fp32_precision, theirs.fp32_precision) == (before, setting)
            if before in ("tf32", "bf16"):
                assert chosen == "default"
            with device.float32_products(torch.device("cuda")) as chosen:
                assert (chosen, MATMUL.fp32_precision) == ("default", before)
        finally:
            theirs.fp32_precision = "none"
