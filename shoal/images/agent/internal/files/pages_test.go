package files

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

func TestPagesKeepTheNamesOfALargeDirectoryUntilItChanges(t *testing.T) {
	path := t.TempDir()
	for number := range leastKept + 50 {
		if err := syscall.Mknod(filepath.Join(path, fmt.Sprintf("%d", number)), syscall.S_IFREG|0o600, 0); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := openAt(atCWD, path, oDirectory, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(dir)
	all := func(p *pages) (found []string) {
		for after := ""; ; after = found[len(found)-1] {
			again, err := openAt(atCWD, path, oDirectory, 0)
			if err != nil {
				t.Fatal(err)
			}
			names, err := p.page(again, after, 3000)
			syscall.Close(again)
			if err != nil {
				t.Fatal(err)
			}
			if len(names) == 0 {
				return found
			}
			found = append(found, names...)
		}
	}
	wanted, err := namesIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(wanted)

	var p pages
	if !slices.Equal(all(&p), wanted) {
		t.Fatal("pages of a directory that was just changed differ from it")
	}
	if p.names.starts != nil {
		t.Fatal("names are kept of a directory that may change within its time's tick")
	}
	time.Sleep(settled + 100*time.Millisecond)
	if !slices.Equal(all(&p), wanted) {
		t.Fatal("pages differ from the directory")
	}
	if len(p.names.starts) != len(wanted) {
		t.Fatalf("%d names are kept", len(p.names.starts))
	}
	if err := os.WriteFile(filepath.Join(path, "new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if found := all(&p); found[len(found)-1] != "new" {
		t.Fatal("a new name is not listed")
	}
	p.forget()
	if p.names.starts != nil {
		t.Fatal("names stay")
	}
}
