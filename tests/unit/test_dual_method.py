"""One async body, two forms."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Coroutine
from typing import Any

import pytest

from shoal.client import dual_method as module
from shoal.client.dual_method import block_on, dual_function, dual_method
from shoal.model.errors import FailedPrecondition


class Adder:
    def __init__(self, base: int) -> None:
        self.base = base

    @dual_method
    async def add(self, more: int, *, times: int = 1) -> int:
        """Adds."""
        await asyncio.sleep(0)
        return self.base + more * times

    @dual_method
    async def thread(self) -> str:
        return threading.current_thread().name

    @dual_method
    async def fail(self) -> None:
        raise KeyError("as it is")

    @dual_function
    @staticmethod
    async def of(*values: int) -> Adder:
        """Makes one."""
        return Adder(sum(values))


def test_both_forms_run_the_one_body() -> None:
    adder = Adder.of(1, 2)
    assert adder.add(3, times=2) == 9

    async def awaited() -> int:
        return await (await Adder.of.aio(4)).add.aio(1)

    assert asyncio.run(awaited()) == 5


def test_the_blocking_form_runs_elsewhere_and_the_other_at_home() -> None:
    assert Adder(0).thread() == "shoal"
    assert asyncio.run(Adder(0).thread.aio()) == threading.current_thread().name


def test_names_docs_and_signatures_are_those_of_the_body() -> None:
    adder = Adder(0)
    assert Adder.add.__doc__ == adder.add.__doc__ == "Adds."
    assert Adder.of.__doc__ == "Makes one."
    assert str(inspect.signature(adder.add)) == "(more: 'int', *, times: 'int' = 1) -> 'int'"
    assert str(inspect.signature(Adder.of)) == "(*values: 'int') -> 'Adder'"
    assert adder.add.__name__ == "add"
    assert "Adder.add" in repr(adder.add)


def test_errors_come_as_they_are() -> None:
    with pytest.raises(KeyError, match="as it is"):
        Adder(0).fail()
    with pytest.raises(TypeError, match="unexpected keyword"):
        Adder(0).add(1, wrong=2)  # type: ignore[call-arg]


def test_context_variables_are_the_callers() -> None:
    import contextvars

    variable = contextvars.ContextVar("variable", default="theirs")
    variable.set("mine")

    async def look() -> str:
        return variable.get()

    assert block_on(look()) == "mine"


def test_many_threads_at_once() -> None:
    results: list[int] = []

    def work(number: int) -> None:
        results.extend(Adder(number).add(i) - i for i in range(200))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(n for n in range(16) for _ in range(200))


class Heir(Adder):
    """The method is its base class's."""


async def _calls_blocking() -> int:
    return Heir(1).add(1)


def test_blocking_the_callers_own_loop_works_and_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # A notebook's cells run inside a loop, so this must work.
    monkeypatch.setattr(module._home, "warned", False)
    with pytest.warns(RuntimeWarning, match=r"await Heir\.add\.aio"):
        assert asyncio.run(_calls_blocking()) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asyncio.run(_calls_blocking()) == 2


def test_blocking_the_background_loop_itself_is_refused() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        block_on(_calls_blocking())
    assert caught.value.state == "in_event_loop"


@pytest.mark.parametrize("handed_over", [True, False])
def test_an_interrupt_while_a_call_is_handed_over_leaves_nothing_running(
    handed_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_on(asyncio.sleep(0))  # there is a loop
    assert module._home.background is not None
    loop = module._home.background.loop
    undone = threading.Event()
    hand_over = loop.call_soon_threadsafe

    def interrupted(*arguments: object, **options: object) -> None:
        monkeypatch.undo()
        if handed_over:
            hand_over(*arguments, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            undone.set()

    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
    coroutine = work()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        block_on(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert undone.is_set() is handed_over
    assert time.monotonic() - began < module._UNDO_S, "it knew when all was over"


def test_an_interrupt_that_comes_with_the_end_waits_for_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Woken:
        def __init__(self) -> None:
            self._lock = threading.Lock()
            self.release = self._lock.release
            self._lock.acquire()

        def acquire(self, timeout: float = -1) -> bool:
            assert self._lock.acquire(timeout=timeout)
            raise KeyboardInterrupt

    class Call(module._Call[None]):
        def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
            super().__init__(coroutine)
            self.ended = Woken()  # type: ignore[assignment]

    monkeypatch.setattr(module, "_Call", Call)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        block_on(asyncio.sleep(0))
    assert time.monotonic() - began < module._UNDO_S


def test_an_interrupt_cancels_what_was_begun_and_goes_on() -> None:
    begun, undone = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            undone.set()

    def interrupt() -> None:
        begun.wait()
        time.sleep(0.1)  # in which the caller has come to wait
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        block_on(work())
    thread.join()
    assert undone.is_set()
    assert time.monotonic() - began < 30  # a machine may stand still for seconds


def _script(code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    # asyncio's debug mode tells of a machine that stood still for a tenth of a second, too.
    done.stderr = re.sub(r"^Executing <.*> took [\d.]+ seconds\n", "", done.stderr, flags=re.MULTILINE)
    return done


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    done = _script("""
        import asyncio, os
        from shoal.client.dual_method import block_on

        async def who():
            await asyncio.sleep(0.01)
            return os.getpid()

        assert block_on(who()) == os.getpid()
        child = os.fork()
        if child == 0:
            ok = block_on(who()) == os.getpid()
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert block_on(who()) == os.getpid()
    """)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_end_of_the_process_is_quiet_and_closes_what_was_registered() -> None:
    done = _script("""
        import asyncio, threading
        from shoal.client.dual_method import at_exit, block_on

        async def close():
            print("closed", flush=True)

        at_exit(close)
        threading.Thread(target=lambda: block_on(asyncio.sleep(60)), daemon=True).start()
        block_on(asyncio.sleep(0.1))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")


def test_a_blocking_call_costs_little() -> None:
    adder = Adder(0)
    adder.add(1)

    def once() -> float:
        start = time.perf_counter()
        for _ in range(20):
            adder.add(1)
        return (time.perf_counter() - start) / 20

    # Some 60 µs on an idle machine. Few at a time: on a busy one some go through undisturbed.
    assert min(once() for _ in range(50)) < 0.0005
