from rehearsal.sandbox import address, other_mounts


def mounts(*points: str) -> list[str]:
    return other_mounts("\n".join(f"1 2 0:1 / {point} rw - x x rw" for point in points))


def test_other_file_systems_are_seen_once_and_the_outer_ones_come_first():
    assert mounts("/", "/srv/x", "/srv", "/tmp", "/data", "/tmp") == [
        *("/data", "/srv", "/srv/x", "/tmp"),
    ]


def test_what_a_pod_has_of_its_own_is_left_out_but_not_what_is_called_alike():
    own = ["/proc", "/sys/fs/cgroup", "/dev", "/dev/shm", "/run/netns"]
    assert mounts("/", *own, "/runner", "/system/x", "/devel") == ["/devel", "/runner", "/system/x"]


def test_files_that_a_container_runtime_mounts_are_left_out():
    assert mounts("/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/etc/x") == ["/etc/x"]


def test_blank_in_a_path_is_one():
    assert mounts("/my\\040data", "/back\\134slash") == ["/back\\slash", "/my data"]


def test_each_pod_has_an_address_of_its_own():
    assert (address(0), address(249), address(250)) == ("10.77.1.1", "10.77.1.250", "10.77.2.1")
    assert len({address(number) for number in range(2000)}) == 2000
