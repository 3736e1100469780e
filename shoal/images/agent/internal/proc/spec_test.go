package proc

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"shoal/agent/internal/fault"
)

func TestOverlay(t *testing.T) {
	changed := "new"
	got := Overlay([]string{"A=1", "B=2", "C=3"}, map[string]*string{"B": nil, "C": &changed})
	if !slices.Equal(got, []string{"A=1", "C=new"}) {
		t.Errorf("%v", got)
	}
}

func TestIDs(t *testing.T) {
	for id, valid := range map[string]bool{
		"p-a": true, "p-0z": true, "p-main": true, "p-": false, "": false, "q-a": false, "p-A": false, "p-a/b": false,
		"p-" + string(make([]byte, 5)): false, "p-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa": true, "p-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa": false,
	} {
		if ValidID(id) != valid {
			t.Errorf("%q", id)
		}
	}
}

func TestFindCommand(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"tool": 0o755, "plain": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	env := []string{"PATH=/nowhere:" + dir}
	if got, err := findCommand("tool", env, "/"); err != nil || got != filepath.Join(dir, "tool") {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := findCommand("tool", []string{"PATH=."}, dir); err != nil || got != filepath.Join(dir, "tool") {
		t.Errorf("relative: %q, %v", got, err)
	}
	for name, code := range map[string]fault.Code{
		"plain": fault.CommandNotExecutable, "folder": fault.CommandNotFound, "none": fault.CommandNotFound,
	} {
		_, err := findCommand(name, env, "/")
		var f *fault.Fault
		if !errors.As(err, &f) || f.Code != code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (a) b) S 0 1 1 0 -1"))
	f.Add([]byte("1 () Z"))
	f.Fuzz(func(t *testing.T, stat []byte) { parseStat(1, stat) })
}

func TestParseStatWithAHostileName(t *testing.T) {
	r, ok := parseStat(7, []byte("7 (x) R 1 1 1) S 3 4 5 0 -1 4194560"))
	if !ok || r != (row{pid: 7, parent: 3, group: 4, session: 5}) {
		t.Errorf("%+v, %v", r, ok)
	}
}
