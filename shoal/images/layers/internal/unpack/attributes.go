package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"shoal/layers/internal/report"
)

const attributePrefix = "SCHILY.xattr."

// keptAttribute tells whether a layer may bring an extended attribute. Overlayfs's own would change what the layer is, and
// the labels of security modules are the node's to give.
func keptAttribute(name string) bool {
	switch {
	case name == "security.capability", name == "system.posix_acl_access", name == "system.posix_acl_default":
		return true
	case strings.HasPrefix(name, "user.overlay."):
		return false
	}
	return strings.HasPrefix(name, "user.")
}

func attributes(header *tar.Header) [][2]string {
	var found [][2]string
	for record, value := range header.PAXRecords {
		if name, is := strings.CutPrefix(record, attributePrefix); is && keptAttribute(name) {
			found = append(found, [2]string{name, value})
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i][0] < found[j][0] })
	return found
}

func owner(header *tar.Header) (int, int, error) {
	// The largest is no user: the system calls take it for "leave it as it is".
	if header.Uid < 0 || header.Gid < 0 || int64(header.Uid) >= math.MaxUint32 || int64(header.Gid) >= math.MaxUint32 {
		return 0, 0, report.Invalid("the archive has an impossible owner %d:%d: %.80q", header.Uid, header.Gid, header.Name)
	}
	return header.Uid, header.Gid, nil
}

// setAttributes gives an open file or directory its owner, mode and extended attributes. The order matters: a change of
// owner takes set-user-id bits and capabilities away.
func setAttributes(fd int, header *tar.Header) error {
	uid, gid, err := owner(header)
	if err != nil {
		return err
	}
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return fmt.Errorf("set the owner of %.80q: %w", header.Name, err)
	}
	if err := unix.Fchmod(fd, uint32(header.Mode&0o7777)); err != nil {
		return fmt.Errorf("set the mode of %.80q: %w", header.Name, err)
	}
	for _, each := range attributes(header) {
		if err := unix.Fsetxattr(fd, each[0], []byte(each[1]), 0); err != nil {
			return attributeError(err, each[0], header.Name)
		}
	}
	return nil
}

func attributeError(err error, attribute, name string) error {
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) || errors.Is(err, unix.E2BIG) {
		return report.Invalid("the archive has an attribute %.80q that cannot be kept, at %.80q: %v", attribute, name, err)
	}
	return fmt.Errorf("set attribute %.80q of %.80q: %w", attribute, name, err)
}

// setNodeAttributes gives a link or a device, which is not to be opened, its owner and times.
func setNodeAttributes(parent int, base string, header *tar.Header) error {
	uid, gid, err := owner(header)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(parent, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the owner of %.80q: %w", header.Name, err)
	}
	times := []unix.Timespec{accessTime(header), modifyTime(header)}
	if err := unix.UtimesNanoAt(parent, base, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the times of %.80q: %w", header.Name, err)
	}
	return nil
}
