from bloomlab import machine


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
