package boot

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// severedInterval is how often a connection is looked at. A snapshot takes longer than a tenth of a second, and whoever
// waits for the sandbox waits for this in addition.
const severedInterval = 200 * time.Millisecond

const (
	pollErr = 0x8
	pollHup = 0x10
)

// onGvisor reports whether this is gVisor's kernel, the only one of which memory snapshots are taken.
func onGvisor() bool {
	version, err := os.ReadFile("/proc/version")
	return err == nil && bytes.Contains(version, []byte("gVisor")) || strings.Contains(release(), "gvisor")
}

func release() string {
	var name syscall.Utsname
	if syscall.Uname(&name) != nil {
		return ""
	}
	text := make([]byte, 0, len(name.Release))
	for _, c := range name.Release {
		if c == 0 {
			break
		}
		text = append(text, byte(c))
	}
	return string(text)
}

// refreshSecret takes the secret of the container that this process is in now: one that was restored from a snapshot is
// in another than when it started. There is none to take where the relay has seen it already.
func (p *parker) refreshSecret() {
	secret, err := readSecret(filepath.Join(filepath.Dir(p.socket), secretName))
	if err != nil || bytes.Equal(secret, p.secret) {
		return
	}
	p.secret = secret
	p.restored()
}

// closeWhenSevered closes a connection that a snapshot has cut off. gVisor does not wake those who wait for it then.
func closeWhenSevered(conn *os.File) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	for {
		time.Sleep(severedInterval)
		severed := false
		if err := raw.Control(func(fd uintptr) { severed = hungUp(int32(fd)) }); err != nil {
			return // closed by somebody else
		}
		if severed {
			conn.Close()
			return
		}
	}
}

// hungUp reports whether nothing will come over the socket any more.
func hungUp(fd int32) bool {
	asked := struct {
		fd              int32
		events, revents int16
	}{fd: fd}
	var now syscall.Timespec
	_, _, errno := syscall.Syscall6(
		syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&asked)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return errno == 0 && asked.revents&(pollErr|pollHup) != 0
}
