"""The start and the end of one pretend machine: `python -m shoal.cluster.scaling.local_machine join|end HEAD MACHINE`,
with the state directories of the head and of the machine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from pathlib import Path

from shoal.cluster.local import join as local_join
from shoal.cluster.scaling.files import ScalingFiles
from shoal.cluster.scaling.local import RECORD, LocalMachine
from shoal.cluster.scaling.ray_config import cpus
from shoal.cluster.scaling.spec import region_of, types_of
from shoal.model import cluster_file, join_token
from shoal.model.errors import FailedPrecondition, ShoalError
from shoal.model.settings import Settings


def main() -> None:
    what, head, directory = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if what == "end":
        _end(directory)
        return
    record = RECORD.validate_json((directory / "record.json").read_bytes())
    if not record.never_joins:
        try:
            _join(head, directory, record)
        except ShoalError as error:
            sys.stderr.write(f"{error}\n")
            _end(directory)


def _join(head: Path, directory: Path, record: LocalMachine) -> None:
    cluster, described = cluster_file.read(head), ScalingFiles.below(head).read_cluster()
    kind = None if described is None else dict(types_of(described)).get(record.type)
    if cluster is None or kind is None:
        raise FailedPrecondition("the cluster is being taken down", state="no_cluster")
    # The head's settings, with what each node has of its own.
    settings = Settings.from_dict(cluster.settings)
    network = settings.network.model_copy(update={"bridge": record.bridge, "subnet": record.subnet})
    own = {"state_dir": directory, "run_dir": directory / "r", "engine_address": cluster.engine_address}
    settings = settings.model_copy(update={**own, "network": network})
    host, _, _ = cluster.ray_address.rpartition(":")
    local_join.join(
        settings,
        local_join.JoinOptions(
            head=cluster.ray_address,
            token=join_token.of_cluster(cluster),
            address=host,
            region=region_of(record.type),
            zone=kind.zone,
            cpus=cpus(kind, settings.node.cpu_overcommit),
            memory=kind.memory,
            gpus=kind.gpus,
            labels=kind.labels,
            environ={"RAY_CLOUD_INSTANCE_ID": record.id, "RAY_NODE_TYPE_NAME": record.type},
            admitted=False,
        ),
    )


def _end(directory: Path) -> None:
    settings = Settings.model_construct(state_dir=directory, run_dir=directory / "r")  # all that it takes
    try:
        (directory / "ending").touch()
    except FileNotFoundError:
        return  # another process has ended it
    with (directory / "ending").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        local_join.leave(settings, force=True, timeout_s=5.0)
        # The record last: as long as it is there, the machine is listed, and ended again if this is killed.
        for path in directory.iterdir():
            if path.name != "record.json":
                remove = shutil.rmtree if path.is_dir() and not path.is_symlink() else Path.unlink
                remove(path)
        (directory / "record.json").unlink(missing_ok=True)
        directory.rmdir()


if __name__ == "__main__":
    os.umask(0o077)
    main()
