"""gVisor's program as it is built here: its own, but that the kernel of a sandbox collects no garbage while it starts.

Go collects from the first 4 MB on, and uses all of the machine's cores for it: 17 of a restore's 130 ms of CPU. A
kernel takes 22 to 28 MB either way. What a variable in the environment would say does not reach it, as gVisor starts it
with an empty one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PROGRAM: Final = """\
// Is gVisor's runsc. Its command `boot`, a sandbox's kernel, collects its garbage late while it starts.
package main

import (
	"os"
	"runtime/debug"
	"slices"
	"time"

	"gvisor.dev/gvisor/runsc/cli/maincli"
	"gvisor.dev/gvisor/runsc/version"
)

const (
	starting = 3 * time.Second
	late     = 1000 // per cent: not before 40 MB; bounded, as its memory counts as the sandbox's
	usual    = 100
)

var _ = version.Version() // set by the linker

func main() {
	if slices.Contains(os.Args, "boot") {
		debug.SetGCPercent(late)
		time.AfterFunc(starting, func() { debug.SetGCPercent(usual) })
	}
	maincli.Main()
}
"""


def write_program(directory: Path) -> None:
    """Writes the program, of package main."""
    directory.mkdir()
    (directory / "main.go").write_text(_PROGRAM)
