"""gVisor's filters of system calls, compiled when it is built. Its own build does that; its Go module comes without
them, and then each sandbox's kernel compiles its filter at its start, which takes 17 ms of CPU, and its gofer, which
takes 6.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PACKAGES: Final = (Path("runsc", "boot", "filter"), Path("runsc", "fsgofer", "filter"))
"""Where in the module they belong: the kernel's and the gofer's."""

_ADDED: Final = "compiled_ahead.go"
_PROGRAM: Final = """\
// Prints, as JSON by package, the files that have the compiled filters of containers as they are started here: their
// kernels use neither the host's network nor its devices, their gofers may open its sockets and make none.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	kernel "gvisor.dev/gvisor/runsc/boot/filter/config"
	gofer "gvisor.dev/gvisor/runsc/fsgofer/filter/config"
)

var packages = []struct {
	path    string
	compile func() ([]precompiledseccomp.Program, error)
	varied  *strings.Replacer
}{
	{"runsc/boot/filter", kernel.PrecompiledPrograms, either("HostFilesystem")},
	{"runsc/fsgofer/filter", gofer.PrecompiledPrograms, either("UDSOpenEnabled", "DirectFS", "LisafsNeeded")},
}

func either(options ...string) *strings.Replacer {
	var replaced []string
	for _, option := range options {
		replaced = append(replaced, option+"=true", "")
	}
	return strings.NewReplacer(replaced...)
}

func main() {
	files := map[string]string{}
	for _, each := range packages {
		programs, err := each.compile()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		var file strings.Builder
		file.WriteString("package filter\\n\\nimport \\"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp\\"\\n\\n")
		file.WriteString("func init() {\\n\\tregisterPrecompiledProgramsOnce.Do(func() {\\n")
		file.WriteString("\\t\\tprograms := map[string]precompiledseccomp.Program{}\\n")
		for _, program := range programs {
			if !strings.Contains(each.varied.Replace(program.Name), "=true") {
				file.WriteString(program.Registration("\\t\\t", "precompiledseccomp", "programs"))
			}
		}
		file.WriteString("\\t\\tprecompiledPrograms = programs\\n\\t})\\n}\\n")
		files[each.path] = file.String()
	}
	json.NewEncoder(os.Stdout).Encode(files)
}
"""


def write_program(directory: Path) -> None:
    """Writes the program, of package main, that prints the files to add."""
    directory.mkdir()
    (directory / "main.go").write_text(_PROGRAM)


def added_to(module: Path, printed: str, copy: Path) -> Path:
    """A copy of gVisor's module, with the files that were printed. Go's own of the module must not change."""
    files: Mapping[str, str] = json.loads(printed)
    shutil.copytree(module, copy, copy_function=shutil.copyfile)
    for directory, _, _ in os.walk(copy):
        os.chmod(directory, 0o700)  # Go's are for reading
    for package in PACKAGES:
        (copy / package / _ADDED).write_text(files[package.as_posix()])
    return copy
