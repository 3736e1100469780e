"""A load of creates and execs whose every effect is counted: what was asked for, what was confirmed, what is there.

Every create has a key and carries it as a tag; every exec appends a word of its own to a file of its sandbox. So what
was lost and what was done twice can be read off the cluster afterwards.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import shoal

R = TypeVar("R")

LOG = "/tmp/words"
EXECS_EACH = 4
PATIENCE_S = 60.0
"""How long a caller asks again before it counts as given up."""


@dataclass
class Account:
    """What one caller's turns were about: one sandbox each."""

    key: str
    sandbox_id: str | None = None
    words: list[str] = field(default_factory=list)
    """Confirmed."""
    doubtful: set[str] = field(default_factory=set)
    """Asked for without an answer: they may be there, once."""
    terminated: bool = False


@dataclass
class Tally:
    """The result of one kill under load."""

    killed: str
    kills: int = 0
    creates: int = 0
    creates_lost: int = 0
    creates_doubled: int = 0
    execs: int = 0
    execs_lost: int = 0
    execs_doubled: int = 0
    ended: int = 0
    """Sandboxes that ended though nobody asked for it."""
    leaked: int = 0
    retried: int = 0
    """Calls that failed with something retryable and were made again."""
    gave_up: int = 0
    untyped: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """What is known of each sandbox that counts as lost or ended."""
    slowest_s: float = 0.0

    @property
    def clean(self) -> bool:
        return not (
            self.creates_lost
            or self.creates_doubled
            or self.execs_lost
            or self.execs_doubled
            or self.ended
            or self.leaked
            or self.gave_up
            or self.untyped
        )


class Load:
    """Callers that create, exec and terminate through `client` until told to stop."""

    def __init__(self, client: shoal.Client, killed: str, callers: int) -> None:
        self.client = client
        self.run = secrets.token_hex(4)
        self.tally = Tally(killed)
        self.accounts: list[Account] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._caller) for _ in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
        assert not any(thread.is_alive() for thread in self._threads), "a caller hangs"

    def wait_for(self, creates: int, within: float = 60.0) -> None:
        """Returns once so many more creates were confirmed."""
        goal = self.confirmed() + creates
        end = time.monotonic() + within
        while self.confirmed() < goal:
            assert time.monotonic() < end, f"only {self.confirmed()} of {goal} creates within {within} s"
            time.sleep(0.05)

    def confirmed(self) -> int:
        with self._lock:
            return sum(account.sandbox_id is not None for account in self.accounts)

    def _caller(self) -> None:
        while not self._stop.is_set():
            account = Account(f"{self.run}-{next(self._numbers)}")
            with self._lock:
                self.accounts.append(account)
            self._turn(account)

    def _turn(self, account: Account) -> None:
        with self._counting():
            sandbox = self._patiently(
                lambda: shoal.Sandbox.create(
                    idempotency_key=account.key,
                    tags={"run": self.run, "key": account.key},
                    timeout=600,
                    client=self.client,
                )
            )
            if sandbox is None:
                return
            account.sandbox_id = sandbox.id
            for number in range(EXECS_EACH):
                word = f"{account.key}-{number}"
                account.doubtful.add(word)
                done = self._patiently(partial(sandbox.run, f"echo {word} >> {LOG}", check=True), again=False)
                if done is not None:
                    account.doubtful.discard(word)
                    account.words.append(word)
            if int(account.key.rpartition("-")[2]) % 2:
                # What is there is read before it goes.
                self._check_words(sandbox, account)
                if self._patiently(lambda: sandbox.terminate() or True):
                    account.terminated = True

    def _patiently(self, call: Callable[[], R], *, again: bool = True) -> R | None:
        """Its result, asking again while the error says so; None where patience or the error's kind ends it."""
        began = time.monotonic()
        while True:
            try:
                result = call()
            except shoal.ShoalError as error:
                with self._lock:
                    self.tally.retried += error.retryable
                if not error.retryable or not again:
                    if again and not isinstance(error, shoal.SandboxEnded):
                        with self._lock:
                            self.tally.untyped.append(f"{type(error).__name__}: {error}")
                    return None
                if time.monotonic() - began > PATIENCE_S:
                    with self._lock:
                        self.tally.gave_up += 1
                    return None
                time.sleep(0.1)
            else:
                with self._lock:
                    self.tally.slowest_s = max(self.tally.slowest_s, time.monotonic() - began)
                return result

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is what the test looks for
            with self._lock:
                self.tally.untyped.append(repr(error))

    def _check_words(self, sandbox: shoal.Sandbox, account: Account) -> None:
        text = self._patiently(lambda: sandbox.run(f"cat {LOG} 2>/dev/null || true", check=True).stdout)
        if text is None:
            return
        counts = Counter(str(text).split())
        with self._lock:
            self.tally.execs += len(account.words)
            self.tally.execs_lost += sum(counts[word] == 0 for word in account.words)
            self.tally.execs_doubled += sum(count > 1 for count in counts.values())

    def settle(self) -> Tally:
        """Counts what is there, takes it away, and returns the tally. After the block."""
        found: Counter[str] = Counter()
        living: dict[str, shoal.Sandbox] = {}
        for sandbox in shoal.Sandbox.list(tags={"run": self.run}, include_ended=True, client=self.client):
            info = sandbox.info()
            if info.state != "failed":  # one that did not start was tried again under its key
                found[sandbox.tags["key"]] += 1
            if not info.ended:
                living[sandbox.id] = sandbox
        tally = self.tally
        for account in self.accounts:
            tally.creates += account.sandbox_id is not None
            tally.creates_lost += account.sandbox_id is not None and found[account.key] == 0
            tally.creates_doubled += found[account.key] > 1
            if account.sandbox_id is not None and not account.terminated:
                sandbox = living.get(account.sandbox_id)
                if sandbox is None:
                    tally.ended += 1
                    tally.lost.append(self._story(account))
                else:
                    self._check_words(sandbox, account)
            elif account.sandbox_id is not None and found[account.key] == 0:
                tally.lost.append(self._story(account))
        for sandbox in living.values():
            sandbox.terminate()
        return tally

    def _story(self, account: Account) -> str:
        """How its sandbox came to its end, as the cluster tells it."""
        about = f"{account.key} {account.sandbox_id}, {len(account.words)} of {EXECS_EACH} words confirmed"
        try:
            info = shoal.Sandbox.from_id(account.sandbox_id or "", client=self.client).info()
            with self.client.events(after=0, sandbox_id=info.id) as events:
                told = [f"{event.at:.3f} {event.kind} {event.data}" for event in iter(partial(events.next, 0), None)]
        except shoal.ShoalError as error:
            return f"{about}: {error!r}"
        return f"{about}: {info.state}, {info.reason}: {info.message}; {'; '.join(told)}"
