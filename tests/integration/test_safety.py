"""What hostile code in a sandbox cannot do. Each test tries it from inside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import shoal
from shoal.actors.network.rules import NODES, elements
from shoal.cluster.local import processes
from tests.cluster import Cluster
from tests.integration.netlab import PROBE
from tests.processes import kill_relay
from tests.runsc import IN_GVISOR

pytestmark = pytest.mark.engine
OWN_KERNEL = pytest.mark.skipif(IN_GVISOR, reason="gVisor shields the first process from nothing: docs/safety.md")


@pytest.fixture(scope="module")
def sandbox(cluster: object) -> Iterator[shoal.Sandbox]:
    with shoal.Sandbox.create() as made:
        yield made


def said(*argv: str) -> list[str]:
    """The lines that a program of this machine prints."""
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()


def own_addresses() -> list[str]:
    """Every IPv4 address of this machine but the loopback's."""
    lines = said("ip", "-4", "-o", "addr")
    found = [m.group(1) for line in lines if (m := re.search(r"inet ([0-9.]+)/", line))]
    return [a for a in found if not a.startswith("127.")]


@contextmanager
def listener() -> Iterator[int]:
    """A service of the node's on all its addresses; proves by itself that it can be reached from the node."""
    server = socket.create_server(("0.0.0.0", 0))
    stop = threading.Event()

    def serve() -> None:
        server.settimeout(0.1)
        while not stop.is_set():
            try:
                server.accept()[0].close()
            except TimeoutError:
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        port = server.getsockname()[1]
        socket.create_connection((own_addresses()[0], port), 20).close()
        yield port
    finally:
        stop.set()
        thread.join()
        server.close()


def reached(sandbox: shoal.Sandbox, targets: list[tuple[str, int]]) -> dict[str, str]:
    result = sandbox.run(["python3", "-c", PROBE, json.dumps(targets), "1.0"], timeout=60, check=True)
    found: dict[str, str] = json.loads(result.stdout)
    assert len(found) == len(targets)
    return found


def test_no_address_of_the_node_answers(sandbox: shoal.Sandbox) -> None:
    with listener() as port:
        found = reached(sandbox, [(a, port) for a in own_addresses()])
    assert len(found) >= 2, "the machine's own and the bridge's at least"
    assert "reached" not in found.values(), found


def test_the_clusters_addresses_are_closed_by_name(cluster: Cluster) -> None:
    """On each node, so also where `network.allow` opens the networks that they are in."""
    table = f"shoal_{cluster.file.settings['network']['bridge']}"
    ends = time.monotonic() + 20
    while not set(own_addresses()) <= set(elements("\n".join(said("nft", "list", "table", "inet", table)), NODES)):
        assert time.monotonic() < ends
        time.sleep(0.2)


def test_rays_ports_do_not_answer(sandbox: shoal.Sandbox) -> None:
    listening = set()
    for line in said("ss", "-H", "-tln"):
        listening.add(int(line.split()[3].rpartition(":")[2]))
    assert listening
    for address in own_addresses()[:2]:
        found = reached(sandbox, [(address, port) for port in sorted(listening)])
        assert "reached" not in found.values(), found


def test_private_ranges_and_the_metadata_address_do_not_answer(sandbox: shoal.Sandbox) -> None:
    targets = [("169.254.169.254", 80), ("10.0.0.1", 80), ("172.16.0.1", 80), ("192.168.1.1", 80), ("100.64.0.1", 80)]
    assert "reached" not in reached(sandbox, targets).values()


def test_sandboxes_do_not_reach_each_other(sandbox: shoal.Sandbox) -> None:
    with shoal.Sandbox.create() as other:
        server = other.exec("python3", "-m", "http.server", "8765")
        address = other.run("hostname -I").stdout.split()[0]
        other.run(
            "for i in $(seq 50); do"
            " python3 -c \"import socket; socket.create_connection(('127.0.0.1', 8765))\" 2>/dev/null && break;"
            " sleep 0.1; done",
            check=True,
        )
        assert "reached" not in reached(sandbox, [(address, 8765)]).values()
        assert "reached" in reached(other, [(address, 8765)]).values(), "it does listen"
        server.kill()


def test_the_internet_stays_reachable(sandbox: shoal.Sandbox) -> None:
    """By what this machine's own package client is set to use."""
    result = sandbox.run(["pip", "download", "--no-deps", "--dest", "/tmp/got", "six==1.17.0"], timeout=100)
    assert result.returncode == 0, result.stderr
    assert "six" in sandbox.run("ls /tmp/got").stdout


def test_a_network_of_none_has_only_itself(cluster: object) -> None:
    with shoal.Sandbox.create(network="none") as sandbox:
        devices = sandbox.run("tail -n +3 /proc/net/dev").stdout.splitlines()
        assert [line.split(":")[0].strip() for line in devices] == ["lo"]
        with listener() as port:
            found = reached(sandbox, [("8.8.8.8", 53), (own_addresses()[0], port)])
        assert "reached" not in found.values()
        assert sandbox.run("cat /etc/resolv.conf").stdout == ""
        told = sandbox.run("pip install --retries 0 six", timeout=60)
        assert "host.package_index" in told.stderr
        with sandbox.exec("git -c core.x=y --paginate config --list", pty=True) as pager:
            assert "core.x=y" in pager.stdout.read()
        assert sandbox.run(["less", "--version"]).returncode == 0


LOOPBACKS = """
import socket
for host in ("localhost", "::1", "127.0.0.1", "0.0.0.0", "::"):
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    server = socket.create_server((host, 0), family=family)
    to = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    socket.create_connection((to, server.getsockname()[1]), 5).close()
server = socket.create_server(("127.0.0.1", 0))  # as programs that know IPv4 only
socket.create_connection(("localhost", server.getsockname()[1]), 5).close()
assert socket.gethostbyname("localhost") == "127.0.0.1"
print(sorted({found[4][0] for found in socket.getaddrinfo("localhost", 80)}))
"""


@pytest.mark.parametrize("network", ["default", "none"])
def test_the_only_ipv6_is_that_of_the_loopback(cluster: object, sandbox: shoal.Sandbox, network: str) -> None:
    with contextlib.ExitStack() as held:
        if network == "none":
            sandbox = held.enter_context(shoal.Sandbox.create(network="none"))
        found = [line.split() for line in sandbox.run("cat /proc/net/if_inet6").stdout.splitlines()]
        assert [(line[0], line[-1]) for line in found] == [("0" * 31 + "1", "lo")]
        assert sandbox.run(["python3", "-c", LOOPBACKS], check=True).stdout == "['127.0.0.1', '::1']\n"


def test_capabilities_are_few_and_none_can_be_gained(sandbox: shoal.Sandbox) -> None:
    status = dict(
        line.split(":\t", 1) for line in sandbox.run("cat /proc/self/status").stdout.splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == ("0" if IN_GVISOR else "2")  # its filter is gVisor's own, on the machine
    allowed = int(status["CapBnd"], 16)
    for name, bit in {
        "DAC_READ_SEARCH": 2, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_MODULE": 16, "SYS_RAWIO": 17, "SYS_PTRACE": 19,
        "SYS_ADMIN": 21, "SYS_BOOT": 22, "SYS_TIME": 25, "MKNOD": 27, "BPF": 39,
    }.items():  # fmt: skip
        assert not allowed >> bit & 1, name


ATTEMPTS = (
    *(f"cat /proc/{name} | grep -q ." for name in ("slabinfo", "kpageflags", "kpagecount", "vmallocinfo", "kcore")),
    "mount -t tmpfs none /mnt",
    "mknod /tmp/disk b 254 0",
    *(() if IN_GVISOR else ("unshare --user true",)),  # there it is one in gVisor's kernel
    "unshare --mount true",
    "echo 1 > /proc/sys/kernel/panic",
    "echo b > /proc/sysrq-trigger",
    "touch /.shoal/run/x",
    "rm /.shoal/run/relay.sock",
    "touch /.shoal/agent",
    "cat /proc/1/environ",
    "readlink /proc/1/fd/0",
    "readlink /proc/1/exe",
    "cat /proc/1/fd/3",
    "dd if=/proc/1/mem of=/dev/null bs=1 count=1",
    "cat /dev/kmsg",
    "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
    "python3 -c 'import ctypes,os; l=ctypes.CDLL(None,use_errno=True); os._exit(0 if l.ptrace(16,1,0,0)==0 else 1)'",
)


def test_what_is_refused(sandbox: shoal.Sandbox) -> None:
    for attempt in ATTEMPTS:
        result = sandbox.run(attempt, timeout=10)
        assert result.returncode != 0, (attempt, result.stdout)
        assert not result.timed_out, attempt


@pytest.mark.skipif(not IN_GVISOR, reason="only gVisor lets the first process inside be killed from inside")
def test_root_inside_ends_its_own_sandbox_at_most(sandbox: shoal.Sandbox) -> None:
    with shoal.Sandbox.create() as other:
        with pytest.raises(shoal.SandboxEnded, match="by code inside"):
            other.run("kill -KILL 1; sleep 30", timeout=20)
        assert other.info().reason == "evicted"
    assert sandbox.run("echo up").stdout == "up\n"


@OWN_KERNEL
def test_root_inside_does_not_end_the_agent(cluster: object) -> None:
    with shoal.Sandbox.create() as sandbox:
        for signal in ("KILL", "STOP"):
            sandbox.run(f"kill -{signal} 1")
            assert sandbox.run("echo up").stdout == "up\n"


MEDDLE = """
import ctypes, fcntl, os, resource
libc = ctypes.CDLL(None)
threads = [int(t) for t in os.listdir("/proc/1/task")]
for t in threads:
    for kind in ("NOFILE", "CPU", "STACK", "AS", "NPROC", "FSIZE"):
        try:
            resource.prlimit(t, getattr(resource, "RLIMIT_" + kind), (1, 1))
        except PermissionError:
            pass
    os.sched_setaffinity(t, {0})
    libc.syscall(251, 1, t, 3 << 13)
signals = range(1, 65)
info = (ctypes.c_int * 32)()
for number in signals:
    os.kill(1, number)
    info[0], info[2] = number, -1
    for t in threads:
        libc.syscall(129, t, number, info)
        libc.syscall(297, 1, t, number, info)
    libc.syscall(424, libc.syscall(434, 1, 0), number, info, 0)
for number in signals:
    r, w = os.pipe()
    try:
        fcntl.fcntl(r, 10, number)
        fcntl.fcntl(r, fcntl.F_SETOWN, 1)
        fcntl.fcntl(r, fcntl.F_SETFL, fcntl.fcntl(r, fcntl.F_GETFL) | os.O_ASYNC)
        os.write(w, b"x")
    except OSError:
        pass
print("done")
"""
"""What root inside can try on the agent: limits, processors, the disk's priority, and signals of all kinds."""

INHERITED = "ulimit -a; taskset -p $$ | cut -d: -f2; ionice -p $$"


@OWN_KERNEL
def test_code_inside_does_not_harm_the_agent_and_through_it_later_processes(cluster: object) -> None:
    with shoal.Sandbox.create() as sandbox:
        before = sandbox.run(INHERITED, check=True).stdout
        assert sandbox.run(["python3", "-c", MEDDLE], timeout=60).stdout == "done\n"
        assert sandbox.run(INHERITED, check=True).stdout == before


def test_nobody_poses_as_the_agent(cluster: object) -> None:
    """Code inside may dial the relay's socket; it is turned away, and what it says reaches nobody."""
    dial = (
        "import socket, time\n"
        "held = []\n"
        "for _ in range(50):\n"
        "    s = socket.socket(socket.AF_UNIX); s.settimeout(20)\n"
        "    s.connect('/.shoal/run/relay.sock')\n"
        "    try:\n"
        "        print(repr(s.recv(100)))\n"
        "    except OSError as e:\n"
        "        print(type(e).__name__)\n"
    )
    with shoal.Sandbox.create() as sandbox:
        said = set(sandbox.run(["python3", "-c", dial], timeout=60).stdout.split("\n")) - {""}
        assert said <= {"b''", "ConnectionResetError", "BrokenPipeError"}, said
        assert sandbox.run("echo mine").stdout == "mine\n"


POSE = (
    "import glob, socket, sys\n"
    "for path in sys.argv[1:]:\n"
    "    s = socket.socket(socket.AF_UNIX); s.settimeout(10)\n"
    "    try:\n"
    "        s.connect(path); s.sendall(b'x' * 32); print(len(s.recv(100)))\n"
    "    except OSError as e:\n"
    "        print(type(e).__name__)\n"
)


def test_no_process_of_the_node_poses_as_the_agent(sandbox: shoal.Sandbox, cluster: Cluster) -> None:
    """The first process of a pid namespace of its own, which any account may make, and root may in any container."""
    top = Path(cluster.file.run_dir) / cluster.file.cluster
    sockets = [str(link / "relay.sock") for link in (top / "c").iterdir()]
    assert sockets
    pose = ["unshare", "--pid", "--fork", "python3", "-c", POSE, *sockets]
    answers = set(said(*pose)) - {"FileNotFoundError"}  # of a warm container that came or went meanwhile
    assert answers
    assert answers <= {"0", "ConnectionResetError", "BrokenPipeError"}
    assert set(said(*NOBODY, "unshare", "--user", "--map-root-user", *pose[1:])) == {"PermissionError"}
    for name in ("", "c", "mounted", "api", "relay.sock", "gateway.sock"):
        assert (top / name).stat().st_mode & 0o077 == 0, name
    assert sandbox.run("echo mine; ls /.shoal/run").stdout == "mine\nrelay.sock\n", "and the secret is gone"


TOLD = "cat /proc/self/mountinfo /proc/mounts /proc/self/mountstats /proc/net/unix /proc/self/cgroup /proc/1/cgroup"
WALK = """
import os, sys
words = [os.fsencode(word) for word in sys.argv[1:]]
for top in "/proc", "/sys":
    for directory, below, files in os.walk(top):
        below[:] = [name for name in below if not name.isdigit()]
        for name in files:
            path = os.path.join(directory, name)
            if os.path.islink(path):  # to what is looked at elsewhere, or by TOLD
                continue
            try:
                found = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                told = os.read(found, 1 << 16)
            except OSError:
                continue
            finally:
                os.close(found)
            if any(word in told for word in words):
                print(path)
"""
DOCKERS_OWN = re.compile(r" (/etc/hosts|/etc/hostname) |[ /]overlay .*(lowerdir|with fstype)|^device overlay ")
"""Where Docker keeps the root file system, and two files beside it if a container has no disk of its own."""


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")


def test_other_accounts_of_the_node_find_no_file_to_read_or_write(sandbox: shoal.Sandbox, cluster: Cluster) -> None:
    """Ray makes its own directories, and follows links in them, for all the world."""
    tops = [os.environ["SHOAL_STATE_DIR"], cluster.file.run_dir, cluster.file.temp_dir]
    assert Path(cluster.file.temp_dir, "session_latest", "logs").is_dir()
    look = [*NOBODY, "find", *tops, "(", "-writable", "-o", "-type", "s", ")", "!", "-type", "l"]
    found = subprocess.run(look, capture_output=True, text=True, check=False, timeout=30)
    assert "Permission denied" in found.stderr
    assert found.stdout == ""
    secrets = [cluster.file.secret_path, cluster.file.auth_token_path, str(Path(tops[0], "cluster.json"))]
    read = subprocess.run([*NOBODY, "cat", *secrets], capture_output=True, text=True, check=False, timeout=30)
    assert read.stdout == ""


ASK = """
import http.client, sys
for port in sys.argv[1:]:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=3)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        print(answer.read().decode(errors="replace") if answer.status == 200 else "")
    except (OSError, http.client.HTTPException):
        pass
"""


def test_no_port_tells_other_accounts_about_sandboxes(sandbox: shoal.Sandbox, cluster: Cluster) -> None:
    ours = processes.of_cluster(cluster.file.cluster, Path(cluster.file.temp_dir))
    ours += processes.listening_below(Path(cluster.file.run_dir))
    marks = [f"pid={process.pid}," for process in ours]
    lines = [line for line in said("ss", "-H", "-tlnp") if any(mark in line for mark in marks)]
    assert lines
    everywhere = [line for line in lines if line.split()[3].startswith(("*", "0.0.0.0", "[::]"))]
    assert all("ServeReplica" in line or "ServeRepli" in line for line in everywhere), everywhere
    ports = {line.split()[3].rpartition(":")[2] for line in lines}
    told = "\n".join(said(*NOBODY, sys.executable, "-c", ASK, *ports))
    for word in (sandbox.id, "SandboxActor", "NodeActor", os.environ["SHOAL_STATE_DIR"]):
        assert word not in told, word


def test_what_the_kernel_tells_inside_says_nothing_of_the_node(sandbox: shoal.Sandbox, cluster: Cluster) -> None:
    top = Path(cluster.file.run_dir) / cluster.file.cluster
    words = [cluster.file.cluster, cluster.file.run_dir, os.environ["SHOAL_STATE_DIR"], *os.listdir(top / "c")]
    shown = sandbox.run(TOLD).stdout.splitlines()
    if IN_GVISOR:  # its cgroup has the name of its container: of no other
        named = {word for word in words for line in shown if word.startswith("c-") and word in line}
        assert len(named) <= 1
        words = [word for word in words if word not in named]
    assert any("/.shoal/run" in line for line in shown)
    assert IN_GVISOR or any("relay.sock" in line for line in shown)
    assert sandbox.run(["python3", "-c", WALK, *words], check=True).stdout == ""
    docker = cluster.machine.settings.engine == "docker"
    for line in shown:
        if not (docker and DOCKERS_OWN.search(line)):
            assert not [word for word in words if word in line], line


def test_the_engine_is_out_of_sight(sandbox: shoal.Sandbox) -> None:
    assert sandbox.run("ls /var/run/docker.sock /run/shoal 2>/dev/null").stdout == ""
    mounts = sandbox.run("cat /proc/mounts").stdout
    for line in mounts.splitlines():
        if " /.shoal/" in line:
            assert " ro," in line, line


def test_the_environment_tells_nothing_of_the_machine(sandbox: shoal.Sandbox) -> None:
    seen = sandbox.run("env").stdout
    assert not [
        line for line in seen.splitlines() if line.startswith("SHOAL_") and not line.startswith("SHOAL_PROCESS=")
    ]
    for word in (str(Path.home() / ".ssh"), "RAY_", os.environ.get("SHOAL_STATE_DIR", "/var/lib/shoal")):
        assert word not in seen


def test_hostile_names_and_trees_harm_nobody(sandbox: shoal.Sandbox) -> None:
    make = """
import os
os.makedirs(b'/tmp/evil/sub', exist_ok=True)
for name in (b'a\\nb', b'\\xff\\xfe', b'-rf', b' '):
    open(b'/tmp/evil/' + name, 'w').write('x')
os.symlink('/etc/passwd', '/tmp/evil/link')
os.symlink('../../../../../../../../tmp/out', '/tmp/evil/up')
"""
    sandbox.run(["python3", "-c", make], check=True)
    entries = {e.name: e for e in sandbox.files.list("/tmp/evil")}
    assert set(entries) == {"a\nb", os.fsdecode(b"\xff\xfe"), "-rf", " ", "link", "up", "sub"}
    assert sandbox.files.read_text("/tmp/evil/" + os.fsdecode(b"\xff\xfe")) == "x"
    assert entries["link"].kind == "link"
    sandbox.files.remove("/tmp/evil", recursive=True)
    assert sandbox.run("test -s /etc/passwd").returncode == 0


def test_moving_the_agents_directory_away_does_not_make_one_the_relay(cluster: object) -> None:
    """Root inside may rename the directory above the mounts, unless it is in a layer below. The agent must still dial
    the real relay."""
    with shoal.Sandbox.create() as sandbox:
        moved = sandbox.run("mv /.shoal /moved && mkdir -p /.shoal/run && ls -d /moved/run")
        if "busy" in moved.stderr:
            return
        assert moved.stdout == "/moved/run\n", moved.stderr
        fake = (
            "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/.shoal/run/relay.sock'); s.listen()\n"
            "print('ready', flush=True); s.accept(); print('came')"
        )
        impostor = sandbox.exec("python3", "-c", fake)
        assert impostor.stdout.read(6) == "ready\n"
        kill_relay()
        assert sandbox.run("echo still here").stdout == "still here\n"
        assert impostor.poll() is None, "the agent dialled what code inside had put in its way"


def test_files_act_as_the_sandboxs_user(cluster: object) -> None:
    with shoal.Sandbox.create(user="nobody") as sandbox:
        files = sandbox.files
        sandbox.run("groupadd -g 4242 readers && usermod -aG readers nobody", user="root", check=True)
        sandbox.run(
            "echo x >/srv/grouped && chgrp 4242 /srv/grouped && chmod 640 /srv/grouped", user="root", check=True
        )
        for refused in (
            lambda: files.read_text("/etc/shadow"),
            lambda: files.write_text("/etc/new", "x"),
            lambda: files.write_text("/etc/passwd", "x"),
            lambda: files.append("/etc/passwd", "x"),
            lambda: files.remove("/etc/passwd"),
            lambda: files.list("/root"),
            lambda: files.mkdir("/srv/new"),
        ):
            with pytest.raises(shoal.PermissionDenied) as caught:
                refused()
            assert caught.value.field == "path"
        assert files.read_text("/srv/grouped") == "x\n"  # by a group that is not its first
        files.write_text("/tmp/mine/file", "mine")
        inside = sandbox.run("umask; stat -c '%U %a' /tmp/mine /tmp/mine/file; ls -l /proc/1/fd", check=False).stdout
        assert inside.split() == ["0022", "nobody", "755", "nobody", "644"]  # and the agent stays closed to it
        files.write_text("/etc/new", "x", user="root")
        assert files.stat("/etc/new").uid == 0
