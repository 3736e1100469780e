package users

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"shoal/agent/internal/fault"
)

func database(t *testing.T, passwd, group string) *Database {
	t.Helper()
	dir := t.TempDir()
	d := &Database{Passwd: filepath.Join(dir, "passwd"), Group: filepath.Join(dir, "group")}
	for path, content := range map[string]string{d.Passwd: passwd, d.Group: group} {
		if content == "" {
			continue
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

const (
	somePasswd = "root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken\nann:x:1000:100::/home/ann:/bin/sh\nbad:x:no:100::/:\n"
	someGroup  = "root:x:0:\nusers:x:100:\nwheel:x:10:ann,root\ndocker:x:999:bob,ann\nbroken\n"
)

func TestUsersAreFoundByNameAndNumber(t *testing.T) {
	d := database(t, somePasswd, someGroup)
	for spec, want := range map[string]User{
		"ann":       {1000, 100, []uint32{100, 10, 999}, "ann", "/home/ann"},
		"1000":      {1000, 100, []uint32{100, 10, 999}, "ann", "/home/ann"},
		"ann:wheel": {1000, 10, []uint32{10}, "ann", "/home/ann"},
		"4242:77":   {4242, 77, []uint32{77}, "", ""},
		"4242":      {4242, 0, []uint32{0}, "", ""},
		"0:0":       {0, 0, []uint32{0}, "root", "/root"},
	} {
		got, err := d.Lookup(spec)
		if err != nil || got.UID != want.UID || got.GID != want.GID || got.Name != want.Name || got.Home != want.Home ||
			!slices.Equal(got.Groups, want.Groups) {
			t.Errorf("%s: %+v, %v", spec, got, err)
		}
	}
}

func TestUnknownUsersAreToldApart(t *testing.T) {
	d := database(t, somePasswd, someGroup)
	for spec, code := range map[string]fault.Code{
		"nobody": fault.UserNotFound, "ann:nogroup": fault.UserNotFound, "bad": fault.UserNotFound, "broken": fault.UserNotFound,
		"-1": fault.UserNotFound, "4294967295": fault.UserNotFound, "ann:": fault.InvalidRequest, ":100": fault.InvalidRequest,
		"": fault.InvalidRequest, strings.Repeat("x", 600): fault.InvalidRequest,
	} {
		_, err := d.Lookup(spec)
		var f *fault.Fault
		if !errors.As(err, &f) || f.Code != code || f.Field != "user" {
			t.Errorf("%.20q: %v", spec, err)
		}
	}
}

func TestAnImageWithoutPasswd(t *testing.T) {
	d := database(t, "", "")
	if got, err := d.Lookup("1000:1000"); err != nil || got.UID != 1000 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := d.Lookup("root"); err == nil {
		t.Error("there is a root")
	}
	if err := os.WriteFile(d.Passwd, []byte("root:x:0:0::/root:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lookup("root"); err != nil {
		t.Errorf("a change is not seen: %v", err)
	}
}

func TestAFifoInThePlaceOfPasswdHoldsNobodyUp(t *testing.T) {
	d := database(t, "", "")
	d.Passwd = "/dev/zero"
	if _, err := d.Lookup("root"); err == nil {
		t.Error("there is a root")
	}
}
