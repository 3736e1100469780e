"""Signal numbers by name, as Linux has them, whatever system the caller runs."""

from __future__ import annotations

import signal as _signal

from shoal.model.errors import InvalidRequest

_NAMES = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT "
    "CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
)
_NUMBERS = {name: number for number, name in enumerate(_NAMES.split(), start=1)}


def signal_number(value: int | str) -> int:
    """The number of `9`, `"KILL"`, `"SIGKILL"` or `signal.SIGKILL`."""
    if isinstance(value, _signal.Signals):
        value = value.name
    if isinstance(value, str):
        name = value.upper().removeprefix("SIG")
        if name in _NUMBERS:
            return _NUMBERS[name]
    elif type(value) is int and 0 < value <= 64:
        return value
    raise InvalidRequest(
        f"signal: {value!r} is not a signal; give a number from 1 to 64, or a name such as 'TERM'", field="signal"
    )
