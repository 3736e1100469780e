// Package users reads /etc/passwd and /etc/group without libc and with bounded memory. An image may lack all three.
package users

import (
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"shoal/agent/internal/fault"
)

const (
	maxFile = 1 << 20
	maxID   = 1<<32 - 2 // to the kernel, the next number means "no id"
	// maxGroups is the kernel's limit on supplementary groups.
	maxGroups = 65536
)

// User is the user that a process runs as. Name and Home are empty if /etc/passwd does not have the uid.
type User struct {
	UID, GID uint32
	Groups   []uint32
	Name     string
	Home     string
}

// Database looks names up in the files at the paths Passwd and Group.
type Database struct {
	Passwd, Group string

	mu     sync.Mutex
	passwd cached
	group  cached
	found  map[string]*User
}

type cached struct {
	stamp stamp
	rows  [][]string
}

type stamp struct {
	ino   uint64
	size  int64
	mtime syscall.Timespec
}

// Lookup finds `name`, `uid`, `uid:gid` or `name:group`. Both sides of the colon may be numbers or names.
func (d *Database) Lookup(spec string) (*User, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed := d.passwd.refresh(d.Passwd)
	if d.group.refresh(d.Group) || changed || d.found == nil || len(d.found) > 64 {
		d.found = make(map[string]*User)
	}
	if user := d.found[spec]; user != nil {
		return user, nil
	}
	user, err := d.lookup(spec)
	if err == nil {
		d.found[spec] = user
	}
	return user, err
}

func (d *Database) lookup(spec string) (*User, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" || hasGroup && group == "" || len(spec) > 512 {
		return nil, fault.Invalid("user", "%q is not name, uid, uid:gid or name:group", spec)
	}
	user, err := d.user(name)
	if err != nil {
		return nil, err
	}
	if !hasGroup {
		return user, nil
	}
	gid, ok := number(group)
	if !ok {
		row := find(d.group.rows, 0, group, 3)
		if row != nil {
			gid, ok = number(row[2])
		}
	}
	if !ok {
		return nil, notFound("the group %q is not in the sandbox's %s: use a number, or add it to the image", group, d.Group)
	}
	user.GID, user.Groups = gid, []uint32{gid}
	return user, nil
}

func (d *Database) user(name string) (*User, error) {
	row := find(d.passwd.rows, 0, name, 4)
	if row == nil {
		uid, ok := number(name)
		if !ok {
			return nil, notFound("the user %q is not in the sandbox's %s: use a number, or add it to the image", name, d.Passwd)
		}
		if row = find(d.passwd.rows, 2, strconv.FormatUint(uint64(uid), 10), 4); row == nil {
			return &User{UID: uid, GID: 0, Groups: []uint32{0}}, nil
		}
	}
	uid, ok := number(row[2])
	gid, ok2 := number(row[3])
	if !ok || !ok2 {
		return nil, notFound("the entry for %q in the sandbox's %s is malformed", name, d.Passwd)
	}
	user := &User{UID: uid, GID: gid, Groups: d.groups(row[0], gid), Name: row[0]}
	if len(row) > 5 {
		user.Home = row[5]
	}
	return user, nil
}

// groups returns the primary group and those that list the user.
func (d *Database) groups(name string, primary uint32) []uint32 {
	groups := []uint32{primary}
	for _, row := range d.group.rows {
		if len(row) < 4 || len(groups) == maxGroups {
			continue
		}
		gid, ok := number(row[2])
		if !ok || gid == primary {
			continue
		}
		for member := range strings.SplitSeq(row[3], ",") {
			if member == name {
				groups = append(groups, gid)
				break
			}
		}
	}
	return groups
}

func notFound(format string, args ...any) error {
	f := fault.New(fault.UserNotFound, format, args...)
	f.Field = "user"
	return f
}

func find(rows [][]string, column int, value string, least int) []string {
	for _, row := range rows {
		if len(row) >= least && row[column] == value {
			return row
		}
	}
	return nil
}

func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}

// refresh reads the file again if it has changed, and reports whether it did. A missing or irregular file has no rows.
func (c *cached) refresh(path string) bool {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		changed := c.rows != nil
		c.stamp, c.rows = stamp{}, nil
		return changed
	}
	now := stamp{st.Ino, st.Size, st.Mtim}
	if now == c.stamp {
		return false
	}
	c.stamp, c.rows = now, parse(path)
	return true
}

func parse(path string) [][]string {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil
	}
	var rows [][]string
	for line := range strings.Lines(string(content)) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" || line[0] == '#' {
			continue
		}
		rows = append(rows, strings.SplitN(line, ":", 8))
	}
	return rows
}
