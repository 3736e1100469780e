"""Every setting of a cluster, in one typed model: name, default and meaning on one line.

Read, later over earlier: the defaults here, a TOML file (`SHOAL_SETTINGS`, else `settings.toml` in the state
directory), environment variables (`SHOAL_POOLS__READY=4`), what the code passes. Unknown keys are refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from shoal.model.spec import Runtime


def default_state_dir() -> Path:
    """The default directory for durable state: `/var/lib/shoal` for root, else below the user's data directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/shoal")
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "shoal"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SandboxDefaults(_Section):
    """The defaults of a sandbox."""

    image: str = "shoal/base"
    """Built if missing; any other reference is pulled"""
    cpu_request: Annotated[float, Field(gt=0)] = 0.125
    """Guaranteed cores"""
    cpu_limit: Annotated[float, Field(gt=0)] = 1.0
    """Most cores"""
    memory_request: Annotated[int, Field(gt=0)] = 128
    """Guaranteed MiB"""
    memory_limit: Annotated[int, Field(gt=0)] = 1024
    """Most MiB"""
    disk: Annotated[int, Field(gt=0)] = 8192
    """Size in MiB of its root filesystem, beyond the image"""
    pids: Annotated[int, Field(gt=0)] = 512
    """Most processes and threads at once"""
    timeout: Annotated[float, Field(gt=0)] = 300.0
    """Lifetime in seconds from its start"""
    runtime: Runtime = "runc"
    """What isolates it: `runc`, or `runsc` for gVisor where nodes have it"""


class Limits(_Section):
    """The most that a caller may ask for."""

    timeout: float = 7 * 86400.0
    """Longest lifetime of a sandbox, in seconds"""
    pids: int = 65536
    """Most processes and threads of one sandbox"""
    create_deadline: float = 300.0
    """Most seconds for a create: waiting for room, and starting"""
    history: int = 10_000
    """Ended sandboxes kept in memory; older ones are read from the store"""
    history_age: float = 86400.0
    """Seconds for which an ended sandbox's last output is kept on its node; the newest 2 GiB in all"""
    pool_size: Annotated[int, Field(ge=0)] = 1_000
    """The most that one pool keeps ready"""
    pools: Annotated[int, Field(ge=0)] = 100
    """The most pools of one environment"""
    images: Annotated[int, Field(ge=0)] = 10_000
    """The most images of one environment: snapshots, and steps of builds"""
    unused_images: Annotated[float, Field(gt=0)] = 30 * 86400.0
    """Seconds after which an image goes that has no name, that nothing needs, and that no sandbox was created from"""


class NodeSettings(_Section):
    """Each node."""

    start_limit: Annotated[int, Field(gt=0)] = 4
    """Containers started or removed at once; more wait"""
    cpu_overcommit: Annotated[float, Field(gt=0)] = 1.0
    """CPU that Ray may assign to requests, as a multiple of the machine's cores"""
    sweep_interval: Annotated[float, Field(gt=0)] = 15.0
    """Seconds between sweeps for orphaned containers and files"""
    disk_interval: Annotated[float, Field(gt=0)] = 1.0
    """Seconds between checks of a sandbox's disk use, where it can't have a disk of its own (longer for large trees)"""
    stop_grace: Annotated[float, Field(ge=0)] = 2.0
    """Seconds between SIGTERM and SIGKILL for a sandbox's own command"""
    orphan_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which an agent without a relay gives up"""
    pids: Annotated[int, Field(gt=0)] | None = None
    """Most processes and threads of all its sandboxes together; none: three quarters of what the kernel can have"""
    image_disk: Annotated[int, Field(gt=0)] | None = None
    """MiB that images may take before those are removed that were used longest ago and can be fetched again; none: half
    of the disk. For engine `oci`
    """
    relay_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0: any free port"""
    seccomp_profile: Path | None = None
    """A seccomp profile (JSON as Docker takes it, on every node) in place of Shoal's own"""
    runsc: Path | None = None
    """gVisor's `runsc`; none: the one that `shoal up --with-gvisor` built, if it has"""
    runsc_platform: Literal["systrap", "kvm"] = "systrap"
    """How gVisor catches system calls; `kvm` is faster on machines of metal, and may not run on virtual ones"""


class PoolSettings(_Section):
    """What is kept ready for the next creates beside the pools that somebody made (`shoal pool create`)."""

    idle_slots: Annotated[int, Field(ge=0)] = 2
    """Sandbox actors of the default shape kept free, without a container"""
    ready: Annotated[int, Field(ge=0)] = 2
    """Sandboxes kept ready of each shape that was created lately, but for checkpoints (0: none)"""
    most_ready: Annotated[int, Field(ge=0)] = 8
    """The most kept ready of such a shape, however many are taken"""
    shapes: Annotated[int, Field(ge=0)] = 4
    """Shapes kept ready: those created last"""
    after: Annotated[int, Field(ge=1)] = 2
    """Creates of a shape within `linger` before it is kept ready"""
    linger: Annotated[float, Field(ge=0)] = 120.0
    """Seconds without a create after which what is kept ready of a shape is ended, and for which a free sandbox actor
    waits for the next sandbox
    """
    max_age: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds after which what is ready is replaced, in every pool"""


class NetworkSettings(_Section):
    """What sandboxes may reach: never the node itself or another sandbox, whatever is set here."""

    bridge: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,11}$")] = "shoal0"
    """The sandboxes' bridge; Shoal creates and removes it"""
    subnet: str = "10.213.0.0/16"
    """The sandboxes' addresses"""
    allow: tuple[str, ...] = ()
    """Private destinations that are allowed: `10.1.2.3`, `10.0.0.0/8`, `10.1.2.3:8080`"""
    dns: tuple[str, ...] = ()
    """Name servers for sandboxes; empty: the machine's"""
    connections: Annotated[int, Field(ge=16)] = 4096
    """Most connections of one sandbox that the kernel tracks, including those that ended lately (UDP 30 s, TCP 2 min):
    64 sandboxes at it fill the table of a usual machine (262,144)
    """
    relay_tls: Literal["auto", "always", "never"] = "auto"
    """TLS between clients and the nodes' relays; `auto`: wherever the relay's address is not a loopback one"""


class ApiSettings(_Section):
    """The HTTP API. Beyond loopback it needs TLS, its own or a proxy's."""

    enabled: bool = True
    """Whether `shoal up` serves it"""
    host: str = "127.0.0.1"
    """The address to listen on"""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0: any free port"""
    replicas: Annotated[int, Field(ge=1, le=64)] = 2
    """Worker processes"""
    auth: bool = True
    """Whether a token is required. May be off only on a loopback address"""
    tls_cert: Path | None = None
    """Certificate chain (PEM); with `tls_key` the API speaks HTTPS"""
    tls_key: Path | None = None
    """Its private key (PEM)"""
    url: str | None = None
    """The URL for clients, if it is not host and port: behind a proxy, `https://shoal.example.com`"""
    tunnel_domain: str | None = None
    """Tunnels are `https://<port>-<sandbox>.<tunnel_domain>`; none: paths below the API's own address, from which a
    browser on this machine is sent to `http://<port>-<sandbox>.localhost`
    """
    confine_tunnels: bool = True
    """Give pages below the API's own address no origin, so that they act neither as the API nor as one another; off:
    only where you trust the pages of all sandboxes
    """
    trusted_proxies: tuple[str, ...] = ()
    """Proxies before the API whose `X-Forwarded-*` is believed: `10.1.2.3`, `10.0.0.0/8`; none: what it says is thrown
    away
    """
    header_timeout: Annotated[float, Field(ge=0.1, le=3600)] = 10.0
    """Seconds for a client to send a request's headers"""
    token_cache: Annotated[float, Field(ge=0)] = 5.0
    """Seconds until a revoked token is refused everywhere"""
    dashboard: bool = True
    """Whether it shows the dashboard at `/`. Without `confine_tunnels` nobody can sign in there with a token"""
    session: Annotated[float, Field(ge=60, le=30 * 86400)] = 12 * 3600.0
    """Seconds after which a browser has to sign in to the dashboard again"""
    max_body: Annotated[int, Field(gt=0)] = 1 << 20
    """Most bytes of a JSON request; 4 times as many for creates, 16 times for commands; files have no limit"""


class StoreSettings(_Section):
    """The cluster's database."""

    url: str | None = None
    """`postgresql://user:password@host/database`; none: a SQLite file in the state directory"""
    redis: str | None = None
    """`redis://user:password@host:6379`, or `rediss:`, where Ray keeps its state: other machines and what runs there
    survive a restart of the head; none: they end with it
    """
    retention: Annotated[float, Field(gt=0)] = 7 * 86400.0
    """Seconds for which ended sandboxes, events and audit entries are kept"""
    usage_retention: Annotated[float, Field(gt=0)] = 90 * 86400.0
    """Seconds for which the sums of what sandboxes used are kept"""


class SecretSettings(_Section):
    """What secrets are encrypted with."""

    key_command: str | None = None
    """A command that prints keys, each 32 bytes in base64 on a line of its own, the newest first: a client of a KMS;
    none: a file of keys, `secrets.keys` in the state directory, which is made when it is needed
    """


class ObjectSettings(_Section):
    """Where images and snapshots are kept for the whole cluster: an S3 bucket, or a server on the head's disk."""

    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] | None = None
    """An S3 bucket that exists; none: an S3 server of Shoal's own in the state directory, started when it is needed"""
    endpoint: Annotated[str, Field(pattern=r"^https?://[^/\s]+/?$")] | None = None
    """The URL of the S3 service, such as `https://minio.example.com:9000`; none: AWS"""
    region: str | None = None
    """The bucket's region; none: as boto3 finds it, else `us-east-1`"""
    path_style: bool | None = None
    """Name the bucket in the path, not in the host's name; none: where `endpoint` is set"""
    ca: Path | None = None
    """Certificates (PEM, on every node) that the service's must come from; none: the usual ones"""
    credentials: Path | None = None
    """A file as `~/.aws/credentials` (on every node); none: boto3's usual chain, such as the machine's role"""
    prefix: Annotated[str, Field(pattern=r"^([\w.-]+/)*[\w.-]*/?$", max_length=256)] = ""
    """Stands before every key, so that several clusters may share a bucket"""
    timeout: Annotated[float, Field(gt=0, le=600)] = 20.0
    """Seconds to wait for an answer, or for the next bytes of one; a call is tried three times"""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """The port of Shoal's own server; 0: any free port"""


class VolumeSettings(_Section):
    """Directories that outlive sandboxes: their data is in the object storage, their metadata in the database."""

    cache: Annotated[int, Field(ge=0)] = 1024
    """MiB of a volume's data that a node keeps on its disk while it has the volume mounted"""
    grace: Annotated[float, Field(ge=0)] = 86400.0
    """Seconds for which a deleted volume can be restored"""
    count: Annotated[int, Field(ge=0)] = 1000
    """The most volumes of one environment"""
    synchronous_commit: bool = False
    """Whether each close waits until PostgreSQL has its metadata on disk (1,000 small files took 32 s, not 7); else
    a crash of the database server loses what was closed in its last second, and was not committed"""


class TelemetrySettings(_Section):
    """What the cluster tells about itself."""

    log_format: Literal["text", "json"] = "text"
    """How its processes write their logs: text, or one JSON object a line with request, sandbox and trace"""
    traces: str | None = None
    """The URL of an OpenTelemetry collector (OTLP over HTTP), such as `http://collector:4318`, for traces; none: no
    traces
    """
    trace_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the traces that begin in the cluster that is recorded; what a caller traces is recorded as it decided"""
    sink: str | None = None
    """Where the output of sandboxes' commands and the events go: `file:///var/log/shoal.ndjson` on every node,
    `https://…` (lines of JSON), or `otlp+https://collector:4318`; none: nowhere
    """
    sink_buffer: Annotated[int, Field(gt=0)] = 256
    """MiB of it that a node keeps on disk while the sink does not take it; what comes beyond that is dropped"""
    headers: Path | None = None
    """A file on every node with lines `Name: value`, such as `Authorization: Bearer …`: headers of what is sent"""

    @field_validator("traces")
    @classmethod
    def _check_traces(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^/\s@]+(/[^\s@?]*)?", url):
            raise ValueError("give the URL of a collector, such as http://collector:4318; a token goes into `headers`")
        return url

    @field_validator("sink")
    @classmethod
    def _check_sink(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"file:///\S+|(otlp\+)?https?://[^/\s@]+(/\S*)?", url):
            raise ValueError(
                "give file:///PATH, https://HOST/PATH or otlp+https://HOST:PORT; a token goes into `headers`"
            )
        return url


class HostSettings(_Section):
    """What sandboxes inherit from the machine, for networks behind a company's proxy or CA. Off by default."""

    ca_bundle: bool = False
    """Mount the machine's CA bundle and point the usual variables at it"""
    proxy: bool = False
    """Pass on `http_proxy`, `https_proxy`, `no_proxy`"""
    package_index: bool = False
    """Pass on pip's index settings"""


class Settings(BaseSettings):
    """The settings of one cluster."""

    model_config = SettingsConfigDict(
        env_prefix="SHOAL_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    state_dir: Path = Field(default_factory=default_state_dir)
    """Durable state: `/var/lib/shoal` for root, else `~/.local/share/shoal`"""
    run_dir: Path = Path("/run/shoal")
    """Sockets; keep it short, since a socket's path has at most 107 bytes"""
    engine: str = "auto"
    """The engine that starts containers: `oci` (directly, as root), `docker`, or `auto`: `oci` where it passes its
    self-check, else `docker`; decided when a cluster starts or a machine joins
    """
    engine_address: str | None = None
    """A Docker engine's address, which is used then; none: the usual one, or the engine that `shoal up` started"""
    agent: Path | None = None
    """The agent's binary; none: the package's"""
    sandbox: SandboxDefaults = SandboxDefaults()
    limits: Limits = Limits()
    node: NodeSettings = NodeSettings()
    pools: PoolSettings = PoolSettings()
    network: NetworkSettings = NetworkSettings()
    host: HostSettings = HostSettings()
    api: ApiSettings = ApiSettings()
    store: StoreSettings = StoreSettings()
    objects: ObjectSettings = ObjectSettings()
    volumes: VolumeSettings = VolumeSettings()
    secrets: SecretSettings = SecretSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        named = os.environ.get("SHOAL_SETTINGS")
        state_dir = Path(os.environ.get("SHOAL_STATE_DIR", default_state_dir()))
        file = Path(named) if named else state_dir / "settings.toml"
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready values for another machine; the inverse of `Settings.from_dict`."""
        return self.model_dump(mode="json")

    def to_dict_for_others(self) -> dict[str, Any]:
        """Like `to_dict` without the store's URLs, which may hold passwords."""
        return self.model_copy(update={"store": self.store.model_copy(update={"url": None, "redis": None})}).to_dict()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Settings:
        """The settings of another process, without this one's environment and files."""
        return cls.model_construct(**dict(_Carried(**data)))


class _Carried(Settings):
    """Reads no files or variables: a mistake in this machine's settings must not stop a restart."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)
