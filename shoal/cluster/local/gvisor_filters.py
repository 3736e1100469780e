"""gVisor's filters of system calls, compiled when it is built. Its own build does that; its Go module comes without
them, and then each sandbox's kernel compiles its filter at its start, which takes 17 ms of CPU.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

PACKAGE: Final = Path("runsc", "boot", "filter")
"""Where in the module they belong."""

_ADDED: Final = "compiled_ahead.go"
_PROGRAM: Final = """\
// Prints the file that has the compiled filters of containers which use neither the host's network nor its devices.
package main

import (
	"fmt"
	"os"
	"strings"

	"gvisor.dev/gvisor/runsc/boot/filter/config"
)

func main() {
	programs, err := config.PrecompiledPrograms()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Print("package filter\\n\\n", "import \\"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp\\"\\n\\n")
	fmt.Print("func init() {\\n\\tregisterPrecompiledProgramsOnce.Do(func() {\\n")
	fmt.Print("\\t\\tprograms := map[string]precompiledseccomp.Program{}\\n")
	for _, program := range programs {
		others := strings.Replace(program.Name, "HostFilesystem=true", "", 1)
		if !strings.Contains(others, "=true") {
			fmt.Print(program.Registration("\\t\\t", "precompiledseccomp", "programs"))
		}
	}
	fmt.Print("\\t\\tprecompiledPrograms = programs\\n\\t})\\n}\\n")
}
"""


def write_program(directory: Path) -> None:
    """Writes the program, of package main, that prints the file to add."""
    directory.mkdir()
    (directory / "main.go").write_text(_PROGRAM)


def added_to(module: Path, printed: str, copy: Path) -> Path:
    """A copy of gVisor's module, with the file that was printed. Go's own of the module must not change."""
    shutil.copytree(module, copy, copy_function=shutil.copyfile)
    for directory, _, _ in os.walk(copy):
        os.chmod(directory, 0o700)  # Go's are for reading
    (copy / PACKAGE / _ADDED).write_text(printed)
    return copy
