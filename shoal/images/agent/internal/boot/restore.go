package boot

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	// snapshotFile is where gVisor tells that a snapshot was taken or restored: a read waits for the next one.
	snapshotFile = "/proc/gvisor/checkpoint"
	// severedInterval is how often connections are looked at where there is no such file, as in old versions of gVisor.
	severedInterval = 200 * time.Millisecond
)

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

// connections are those to the relay. A snapshot cuts them off, and gVisor does not wake those who wait for them then.
type connections struct {
	mu   sync.Mutex
	open map[*os.File]struct{}
}

func (c *connections) add(conn *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[*os.File]struct{}{}
	}
	c.open[conn] = struct{}{}
}

func (c *connections) remove(conn *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}

// closeSevered closes what is cut off, for ever: at once after each snapshot of which `told` tells, and a while after that,
// for the snapshot that came while nobody listened.
func (c *connections) closeSevered(told string) {
	for {
		if awaitSnapshot(told) {
			c.closeHungUp()
		}
		time.Sleep(severedInterval)
		c.closeHungUp()
	}
}

func (c *connections) closeHungUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		severed := false
		raw, err := conn.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { severed = hungUp(int32(fd)) })
		}
		if err != nil || severed { // an error: it was closed by somebody else
			conn.Close()
			delete(c.open, conn)
		}
	}
}

// awaitSnapshot returns once a snapshot was taken or restored; false at once where nobody tells.
func awaitSnapshot(told string) bool {
	fd, err := syscall.Open(told, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	file := os.NewFile(uintptr(fd), told) // which waits without a thread
	defer file.Close()
	_, err = file.Read(make([]byte, 1))
	return err == nil
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
