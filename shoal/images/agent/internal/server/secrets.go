package server

import (
	"os"
	"sort"
	"strings"
	"syscall"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/users"
)

const (
	tmpfsMagic = 0x01021994 // statfs(2); gVisor's tmpfs has it, too
	mostFiles  = 1024
)

// secretFiles are files that a sandbox gets at its start, in a directory that is memory and not disk.
type secretFiles struct {
	Directory text             `json:"directory"`
	Files     map[string]*text `json:"files"`
}

// write puts the files in place of those that are there, for their owner alone.
func (s *secretFiles) write(who *users.User) error {
	directory := string(s.Directory)
	if !strings.HasPrefix(directory, "/") || len(s.Files) > mostFiles {
		return fault.Invalid("secrets", "give an absolute directory, and at most %d files", mostFiles)
	}
	fd, err := syscall.Open(directory, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fault.Path("secrets", err)
	}
	defer syscall.Close(fd)
	var kind syscall.Statfs_t
	if err := syscall.Fstatfs(fd, &kind); err != nil {
		return fault.Path("secrets", err)
	}
	if int64(kind.Type) != tmpfsMagic {
		return fault.Invalid("secrets", "%s is on disk, where secrets must not be", directory)
	}
	names := make([]string, 0, len(s.Files))
	for name := range s.Files {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || s.Files[name] == nil {
			return fault.Invalid("secrets", "%q is no name of a file", name)
		}
		if err := writeSecret(fd, name, string(*s.Files[name]), who); err != nil {
			return fault.Path("secrets", err)
		}
	}
	if err := syscall.Fchown(fd, int(who.UID), int(who.GID)); err != nil {
		return fault.Path("secrets", err)
	}
	return nil
}

func writeSecret(directory int, name, value string, who *users.User) error {
	if err := syscall.Unlinkat(directory, name); err != nil && err != syscall.ENOENT {
		return err
	}
	fd, err := syscall.Openat(directory, name, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_CLOEXEC, 0o400)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	if _, err := file.WriteString(value); err != nil {
		return err
	}
	return file.Chown(int(who.UID), int(who.GID))
}

// dumpNothing keeps the memory of processes, and with it what they know, out of core files. A limit of one byte, not of
// none: the kernel then also passes nothing to a program that the machine's core_pattern names (core(5)). gVisor, which
// dumps nothing, may refuse it.
func dumpNothing() {
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: 1, Max: 1})
}
