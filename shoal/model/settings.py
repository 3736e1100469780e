"""Every setting of a cluster, in one typed model: name, default and meaning on one line.

Read, later over earlier: the defaults here, a TOML file (`SHOAL_SETTINGS`, else `settings.toml` in the state directory), environment variables
(`SHOAL_NODE__IDLE_SLOTS=4`), what the code passes. Unknown keys are refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource


def default_state_dir() -> Path:
    """Where Shoal keeps what must outlive its processes: `/var/lib/shoal` for root, else below the user's data directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/shoal")
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "shoal"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SandboxDefaults(_Section):
    """What a sandbox gets when its creator does not say."""

    image: str = "shoal/base"
    """Built where it is missing; any other reference is pulled"""
    cpu_request: Annotated[float, Field(gt=0)] = 0.125
    """Cores that it is sure of"""
    cpu_limit: Annotated[float, Field(gt=0)] = 1.0
    """Cores that it may use"""
    memory_request: Annotated[int, Field(gt=0)] = 128
    """MiB that it is sure of"""
    memory_limit: Annotated[int, Field(gt=0)] = 1024
    """MiB that it may use"""
    disk: Annotated[int, Field(gt=0)] = 8192
    """MiB written to the root filesystem"""
    pids: Annotated[int, Field(gt=0)] = 512
    """Processes and threads at once"""
    timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds from its start"""


class Limits(_Section):
    """The most that anybody may ask for."""

    timeout: float = 7 * 86400.0
    """Seconds that a sandbox may ask to live"""
    pids: int = 65536
    """Processes and threads of one sandbox"""
    create_deadline: float = 300.0
    """Seconds that a create may wait for room and start"""
    history: int = 10_000
    """Ended sandboxes kept in memory; older ones are read from the store"""
    history_age: float = 86400.0
    """Seconds that the last output of an ended sandbox is kept on its node; of all of them the newest 2 GiB"""


class NodeSettings(_Section):
    """How a node works."""

    start_limit: Annotated[int, Field(gt=0)] = 4
    """Containers being started or removed at once; more wait in line"""
    idle_slots: Annotated[int, Field(ge=0)] = 2
    """Sandbox actors of the default shape kept ready"""
    slot_linger: Annotated[float, Field(ge=0)] = 120.0
    """Seconds that an idle slot beyond those is kept for the next sandbox of its shape"""
    warm_containers: Annotated[int, Field(ge=0)] = 2
    """Containers kept ready of each recently used shape (0: none)"""
    warm_shapes: Annotated[int, Field(ge=0)] = 4
    """How many shapes are kept warm: the most recently used"""
    warm_after: Annotated[int, Field(ge=1)] = 2
    """Creates of a shape within `warm_linger` before it is kept warm"""
    warm_linger: Annotated[float, Field(gt=0)] = 120.0
    """Seconds without a create after which a shape's warm containers go"""
    cpu_overcommit: Annotated[float, Field(gt=0)] = 1.0
    """CPU that Ray may hand out in requests, as a multiple of the machine's cores"""
    sweep_interval: Annotated[float, Field(gt=0)] = 15.0
    """Seconds between sweeps for what no sandbox owns"""
    disk_interval: Annotated[float, Field(gt=0)] = 1.0
    """Seconds between looks at a sandbox's disk, where the file system has no quotas (longer for trees that take long to count)"""
    stop_grace: Annotated[float, Field(ge=0)] = 2.0
    """Seconds between SIGTERM and SIGKILL for a sandbox's own command"""
    orphan_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which an agent that finds no relay gives up"""
    relay_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0: any free one"""


class NetworkSettings(_Section):
    """What sandboxes may reach. Whatever stands here, never the node itself nor another sandbox."""

    bridge: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,11}$")] = "shoal0"
    """The bridge that sandboxes are on; made and taken away by Shoal"""
    subnet: str = "10.213.0.0/16"
    """Their addresses"""
    allow: tuple[str, ...] = ()
    """Private destinations that are opened all the same: `10.1.2.3`, `10.0.0.0/8`, `10.1.2.3:8080`"""
    dns: tuple[str, ...] = ()
    """Name servers for sandboxes; none: the machine's own"""


class ApiSettings(_Section):
    """The HTTP API. Off loopback it wants TLS, of its own or of a proxy before it."""

    enabled: bool = True
    """Whether `shoal up` serves it"""
    host: str = "127.0.0.1"
    """The address that it listens on"""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0: any free one"""
    replicas: Annotated[int, Field(ge=1, le=64)] = 2
    """Processes that answer"""
    auth: bool = True
    """Ask for a token. May be off on a loopback address only"""
    tls_cert: Path | None = None
    """Certificate chain (PEM); with `tls_key` the API speaks HTTPS"""
    tls_key: Path | None = None
    """Its private key (PEM)"""
    url: str | None = None
    """How clients reach it, where that is not host and port: behind a proxy, `https://shoal.example.com`"""
    tunnel_domain: str | None = None
    """Tunnels are `https://<port>-<sandbox>.<tunnel_domain>`; none: paths below the API's own address"""
    header_timeout: Annotated[float, Field(ge=0.1, le=3600)] = 10.0
    """Seconds that a client may take to send a request's headers"""
    token_cache: Annotated[float, Field(ge=0)] = 5.0
    """Seconds until a revoked token is refused everywhere"""
    max_body: Annotated[int, Field(gt=0)] = 1 << 20
    """Bytes of a JSON request; a batch may have 4 times that, a file has no limit but the disk's"""


class StoreSettings(_Section):
    """Where the cluster keeps what it knows."""

    url: str | None = None
    """`postgresql://user:password@host/database`; none: a SQLite file in the state directory"""
    retention: Annotated[float, Field(gt=0)] = 7 * 86400.0
    """Seconds that ended sandboxes, events and audit entries are kept"""


class HostSettings(_Section):
    """What sandboxes take over from the machine, for networks behind a company's proxy or CA. Off unless the operator says so."""

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
    """What must outlive processes: `/var/lib/shoal` for root, else `~/.local/share/shoal`"""
    run_dir: Path = Path("/run/shoal")
    """Sockets; a short path, for a socket's name has 107 bytes"""
    engine: str = "docker"
    """Which engine starts containers"""
    engine_address: str | None = None
    """Where the engine listens; none: its usual place, or the one that `shoal up` started"""
    agent: Path | None = None
    """The agent's binary; none: the one in the package"""
    sandbox: SandboxDefaults = SandboxDefaults()
    limits: Limits = Limits()
    node: NodeSettings = NodeSettings()
    network: NetworkSettings = NetworkSettings()
    host: HostSettings = HostSettings()
    api: ApiSettings = ApiSettings()
    store: StoreSettings = StoreSettings()

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
        """JSON-ready, for carrying to another machine; `Settings.from_dict` is its inverse."""
        return self.model_dump(mode="json")

    def to_dict_for_others(self) -> dict[str, Any]:
        """As `to_dict`, for whoever does not open the store: its URL may hold a password."""
        return self.model_copy(update={"store": self.store.model_copy(update={"url": None})}).to_dict()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Settings:
        """The settings as another process had them, whatever stands in this one's environment and files."""
        return cls.model_construct(**dict(_Carried(**data)))


class _Carried(Settings):
    """Made of what it is given alone: a mistake in this machine's file must not keep what restarts from starting."""

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
