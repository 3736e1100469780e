"""The engine of one machine, as `shoal up`, `down` and `doctor` see it: provided, looked at, emptied and taken away,
though no node need run. The containers of a node that runs are its own (`shoal/actors/engines`).

    EngineKind      an engine that Shoal can use: may it be used here, and how it is provided
    LocalEngine     one that is there, named by its address, which `cluster.json` keeps
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

from shoal.cluster.local.checks import Check
from shoal.model.cluster_file import ProcessRef
from shoal.model.report import Report
from shoal.model.settings import Settings


class LocalEngine(ABC):
    """An engine of this machine. All methods block. `process`: set if it is a daemon of Shoal's own; `has_gvisor`:
    whether it starts containers in gVisor, where that is."""

    kind: str
    address: str
    process: ProcessRef | None = None
    has_gvisor: bool = False

    @abstractmethod
    def answers(self, timeout_s: float = 3.0) -> bool:
        """Whether containers can be started."""

    @abstractmethod
    def has_image(self, reference: str) -> bool:
        """`Unavailable` if it does not answer."""

    @abstractmethod
    def ensure_image(self, reference: str, cache: Path, report: Report) -> None:
        """Provides it with an image: `shoal/base` is built here where it is missing, any other pulled.

        `shoal/base` itself is never looked for in a registry: it names none, and what a public registry has under it is
        not ours.
        """

    @abstractmethod
    def load_image(self, source: Path, reference: str, *, root: bool) -> str:
        """Adds the image in an archive of `docker save` or in a directory in the OCI layout, or (`root`) one of a tar
        of a root filesystem, under a name; its digest. `InvalidRequest` (field `image`), `QuotaExceeded`,
        `Unavailable`."""

    @abstractmethod
    def containers(self, labels: Mapping[str, str]) -> list[str]:
        """The keys of all containers that carry all of `labels`, ended ones too."""

    @abstractmethod
    def processes(self) -> set[int]:
        """The engine's own, and the first of each container that runs, with what stands between."""

    @abstractmethod
    def sweep(self, labels: Mapping[str, str], *, keep: bool) -> None:
        """Removes the containers that carry all of `labels`. `keep`: those that are kept are stopped instead.
        `FailedPrecondition` for those that stay, `Unavailable` if it does not answer."""

    @abstractmethod
    def stop(self, *, keep: bool) -> None:
        """Ends what of the engine is Shoal's own, with all that it holds but (`keep`) the containers that are kept."""


class EngineKind(ABC):
    """An engine that Shoal can use. `name`: what the setting `engine` calls it."""

    name: str

    @abstractmethod
    def problem(self, settings: Settings) -> str | None:
        """Why it cannot be used on this machine, as far as that can be told without changing it; None: it can."""

    @abstractmethod
    def provide(self, settings: Settings, report: Report) -> LocalEngine:
        """The engine, installed and started if necessary; `FailedPrecondition` with the remedy."""

    @abstractmethod
    def at(self, address: str, settings: Settings) -> LocalEngine | None:
        """The engine at an address of this kind's, whether it answers or not; None for another kind's."""

    @abstractmethod
    def again(self, address: str, settings: Settings, *, own: bool) -> LocalEngine | None:
        """The engine at an address, to take away what it holds; one of Shoal's own (`own`) that died is started again
        for that. None if nobody answers, or for another kind's address."""

    @abstractmethod
    def there(self, settings: Settings) -> LocalEngine | None:
        """The one that these settings lead to, if it is there, without starting any."""

    def kept(self, settings: Settings) -> set[str]:
        """The keys of the containers that it keeps, as far as that can be told while it does not run."""
        return set()

    @abstractmethod
    def leftover(self, settings: Settings) -> bool:
        """Whether a daemon of Shoal's own runs, though no cluster file names it."""

    @abstractmethod
    def checks(self, settings: Settings) -> Iterator[Check]:
        """What it needs of this machine."""
