"""What a machine of AWS runs when it starts: it becomes a node, or ends itself."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence

from shoal.cluster.scaling.contract import Misconfigured
from shoal.cluster.scaling.spec import NodeTypeSpec, region_of

_MOST_BYTES = 16_384
"""What EC2 takes, in base64."""

_SCRIPT = """\
#!/bin/bash
# Makes this machine a node of a Shoal cluster. What it says is in /var/log/shoal-join.log.
umask 077
exec >>/var/log/shoal-join.log 2>&1
set -eu
# A machine that is no node only costs money: it ends, and is terminated by that.
trap 'shutdown -h +1' ERR
export HOME="${{HOME:-/root}}" PATH="$PATH:/usr/local/bin"
session=$(curl -sSf --retry 10 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 300' http://169.254.169.254/latest/api/token)
about() {{ curl -sSf --retry 10 -H "X-aws-ec2-metadata-token: $session" "http://169.254.169.254/latest/meta-data/$1"; }}
RAY_CLOUD_INSTANCE_ID=$(about instance-id)
zone=$(about placement/availability-zone)
export RAY_CLOUD_INSTANCE_ID RAY_NODE_TYPE_NAME={type}
{setup}
SHOAL_JOIN_TOKEN={token}
export SHOAL_JOIN_TOKEN
shoal join {head} --region {region} --zone "$zone" {sizes}
"""


def user_data(
    type_name: str,
    kind: NodeTypeSpec,
    *,
    head: str,
    join_token: str,
    cpus: int,
    setup: Sequence[str] = (),
    token_command: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> str:
    """The script for machines of a type. `cpus`: that Ray may assign; `token_command`: prints the join token there.

    Raises `Misconfigured` where it is longer than EC2 takes.
    """
    sizes = [f"--cpus {cpus}", f"--memory {kind.memory}", f"--gpus {kind.gpus}"]
    sizes += [f"--label {shlex.quote(f'{name}={value}')}" for name, value in (labels or {}).items()]
    script = _SCRIPT.format(
        type=shlex.quote(type_name),
        setup="\n".join(setup),
        token=f"$({token_command})" if token_command is not None else shlex.quote(join_token),
        head=shlex.quote(head),
        region=shlex.quote(region_of(type_name)),
        sizes=" ".join(sizes),
    )
    size = len(base64.b64encode(script.encode()))
    if size > _MOST_BYTES:
        raise Misconfigured(f"a machine's script has {size} bytes; EC2 takes {_MOST_BYTES}: put `setup` into the image")
    return script
