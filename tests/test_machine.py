import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bloomlab import machine


@pytest.fixture
def two_gpus(monkeypatch):
    """What torch says on a machine with two GPUs, one of them held by another process alone."""
    free = [(71_000_000_000, 80_000_000_000), None]

    def mem_get_info(index):
        if free[index] is None:
            raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable")
        return free[index]

    device = SimpleNamespace(name="NVIDIA H100", total_memory=80_000_000_000)
    monkeypatch.setattr(machine, "built_for_gpus", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_listed_with_what_is_free_of_them():
    lines = machine.machine_lines()
    assert "GPU 0 (NVIDIA H100): 71.0 GB free of 80.0 GB" in lines
    assert "GPU 1 (NVIDIA H100): 0 B free of 80.0 GB" in lines
    assert not any("none" in line for line in lines)


@pytest.mark.usefixtures("two_gpus")
def test_a_model_is_held_against_every_gpu(run):
    code, out, err = run("info", "demo", "--no-card")
    assert (code, err) == (0, "")
    assert "GPU 0 (NVIDIA H100): 71.0 GB free" in out
    assert "GPU 1 (NVIDIA H100): 0 B free" in out


def test_whether_torch_is_built_for_gpus_is_known_without_importing_it():
    code = (
        "import sys; from bloomlab import machine; print(machine.built_for_gpus());"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    built = torch.version.cuda is not None or torch.version.hip is not None
    assert done.stdout == f"{built}\n"


@pytest.mark.parametrize(
    ("source", "built"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", False),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", True),
        ("cuda = None\nhip: Optional[str] = '7.1'\n", True),
        ("cuda = '12.6'\n", True),
    ],
)
def test_a_build_is_read_from_the_file_of_torch(tmp_path, monkeypatch, source, built):
    (tmp_path / "version.py").write_text(source)
    place = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: place)
    assert machine.built_for_gpus() == built


def test_a_cpu_build_beside_an_nvidia_driver_is_pointed_out(monkeypatch):
    monkeypatch.setattr(machine, "built_for_gpus", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    cpu_only = f"GPU: none found (torch {torch.__version__} is built for CPUs only)"
    assert cpu_only in machine.machine_lines()
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    [line] = [line for line in machine.machine_lines() if line.startswith("GPU")]
    assert "there is an NVIDIA driver" in line
    assert "CUDA build" in line


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package"))
    lines = machine.machine_lines()
    assert lines[1] == f"torch {torch.__version__}, no-such-package missing"
    assert "Missing: pip install no-such-package" in lines


def test_the_next_step_is_told():
    lines = machine.machine_lines()
    commands = lines[lines.index("Next:") + 1 :]
    assert [line.split()[:2] for line in commands] == [
        ["bloomlab", command] for command in ("lab", "generate", "info", "info")
    ]
    assert max(map(len, commands)) <= 90


def test_without_a_network_this_machine_is_described_and_the_hub_named(run, monkeypatch):
    def refuse(*address, **options):
        raise AssertionError(f"the network was asked: {address}")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    code, out, err = run("info")
    assert (code, err) == (0, "")
    assert machine.OFFLINE in out.splitlines()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    code, out, err = run("info")
    assert (code, err) == (0, "")
    assert "HF_HUB_OFFLINE" not in out
    code, out, err = run("info", "demo", "--no-card")
    assert (code, err) == (0, "")


def test_memory_limits_of_control_groups_count(tmp_path, monkeypatch):
    root, table = tmp_path / "cgroup", tmp_path / "table"
    job = root / "slice" / "job"
    job.mkdir(parents=True)
    table.write_text("0::/slice/job\n")
    (job / "memory.max").write_text("max\n")
    (job / "memory.current").write_text("1\n")
    (job.parent / "memory.max").write_text(f"{10**9}\n")
    (job.parent / "memory.current").write_text("300000000\n")
    (job.parent / "memory.stat").write_text("anon 5\ninactive_file 100000000\n")
    groups = list(machine._control_groups(table, root))
    assert groups == [job, job.parent, root]
    monkeypatch.setattr(machine, "_control_groups", lambda: groups)
    assert machine.free_ram() == (800_000_000, 10**9)


def test_memory_limits_of_the_first_version_of_control_groups(tmp_path):
    job = tmp_path / "memory" / "job"
    job.mkdir(parents=True)
    (tmp_path / "table").write_text("5:cpu,cpuacct:/job\n4:memory:/job\n")
    (job / "memory.limit_in_bytes").write_text("500")
    (job / "memory.usage_in_bytes").write_text("200")
    (job / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 50\n")
    groups = list(machine._control_groups(tmp_path / "table", tmp_path))
    assert groups == [job, job.parent]
    assert list(machine._limits(job)) == [(500, 150)]


def test_free_memory_is_part_of_the_whole():
    free, total = machine.free_ram()
    assert 0 < free <= total
    assert all(0 <= free <= total for free, total in machine.gpus().values())
