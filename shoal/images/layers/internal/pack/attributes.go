package pack

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"shoal/layers/internal/report"
)

const (
	attributePrefix = "SCHILY.xattr."
	overlay         = "trusted.overlay."
	capability      = "security.capability"
)

// addAttributes reads a file's extended attributes into its header, and tells whether overlayfs hides what lies below it.
func addAttributes(header *tar.Header, fd int) (opaque bool, err error) {
	names, err := list(fd)
	if err != nil {
		return false, fmt.Errorf("list the attributes of %.80q: %w", header.Name, err)
	}
	for _, name := range names {
		switch {
		case name == overlay+"redirect", name == overlay+"metacopy":
			// Its content is elsewhere. The engine mounts with both switched off.
			return false, report.Fail(report.Internal, "%.80q has the attribute %s, which a layer cannot hold", header.Name, name)
		case name != overlay+"opaque" && !kept(name):
			continue
		}
		value, err := get(fd, name)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read attribute %.80q of %.80q: %w", name, header.Name, err)
		}
		if name == overlay+"opaque" {
			opaque = opaque || string(value) == "y"
			continue
		}
		if name == capability {
			value = withoutNamespace(value)
		}
		if header.PAXRecords == nil {
			header.PAXRecords = map[string]string{}
		}
		header.PAXRecords[attributePrefix+name] = string(value)
	}
	return opaque, nil
}

// kept are the attributes that unpacking takes, too.
func kept(name string) bool {
	switch name {
	case capability, "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	// An equals sign would end the name in the archive.
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.") && !strings.Contains(name, "=")
}

// withoutNamespace makes a capability that counts only in a container's user namespace (version 3: it ends with the id of the
// namespace's root) one that counts wherever the image is (version 2).
func withoutNamespace(value []byte) []byte {
	const version, version2, version3, size3 = 0xff000000, 0x02000000, 0x03000000, 24
	if len(value) != size3 {
		return value
	}
	magic := binary.LittleEndian.Uint32(value)
	if magic&version != version3 {
		return value
	}
	binary.LittleEndian.PutUint32(value, magic&^version|version2)
	return value[:size3-4]
}

func list(fd int) ([]string, error) {
	buffer := make([]byte, 1024)
	for {
		n, err := unix.Flistxattr(fd, buffer)
		if errors.Is(err, unix.ERANGE) && len(buffer) < 64<<10 {
			buffer = make([]byte, 64<<10)
			continue
		}
		if errors.Is(err, unix.ENOTSUP) || n == 0 {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return strings.Split(strings.TrimSuffix(string(buffer[:n]), "\x00"), "\x00"), nil
	}
}

func get(fd int, name string) ([]byte, error) {
	buffer := make([]byte, 256)
	n, err := unix.Fgetxattr(fd, name, buffer)
	if errors.Is(err, unix.ERANGE) {
		buffer = make([]byte, 64<<10)
		n, err = unix.Fgetxattr(fd, name, buffer)
	}
	if err != nil {
		return nil, err
	}
	return buffer[:n], nil
}
