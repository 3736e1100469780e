package server

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"shoal/agent/internal/users"
)

func given(value string) *text {
	t := text(value)
	return &t
}

func TestSecretsAreFilesOfTheirOwnerInMemory(t *testing.T) {
	directory, err := os.MkdirTemp("/dev/shm", "secrets")
	if err != nil {
		t.Fatal("no tmpfs here: ", err)
	}
	defer os.RemoveAll(directory)
	me := &users.User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	for _, value := range []string{"first", "second"} {
		files := secretFiles{Directory: text(directory), Files: map[string]*text{"KEY": given(value)}}
		if err := files.write(me); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(directory, "KEY")
		if content, err := os.ReadFile(path); err != nil || string(content) != value {
			t.Fatalf("%q, %v", content, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o400 {
			t.Fatalf("%v, %v", info, err)
		}
	}
}

func TestSecretsAreRefusedOnDiskAndBelowIt(t *testing.T) {
	me := &users.User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	directory := t.TempDir()
	var kind syscall.Statfs_t
	if syscall.Statfs(directory, &kind) == nil && int64(kind.Type) != tmpfsMagic {
		onDisk := secretFiles{Directory: text(directory), Files: map[string]*text{"KEY": given("x")}}
		if onDisk.write(me) == nil {
			t.Error("it was written to disk")
		}
		if entries, _ := os.ReadDir(directory); len(entries) != 0 {
			t.Error("something of it is on disk")
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "../x"} {
		files := secretFiles{Directory: "/dev/shm", Files: map[string]*text{name: given("x")}}
		if files.write(me) == nil {
			t.Errorf("%q was taken for a name", name)
		}
	}
}
