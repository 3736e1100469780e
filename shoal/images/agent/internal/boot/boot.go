// Package boot is the agent as first process of its container: it takes up its post, parks at the relay, and leaves in order.
package boot

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"shoal/agent/internal/proc"
	"shoal/agent/internal/server"
	"shoal/agent/internal/users"
)

const (
	prSetDumpable     = 4
	sysCloseRange     = 436 // the same on every architecture
	closeRangeCloexec = 4
	defaultGrace      = 2 * time.Second
	// softMemory is where the collector begins to work hard. What a busy agent needs lies far below.
	softMemory = 192 << 20
	// gcPercent keeps the heap of a busy agent below 4 MiB: a tighter one collects so often that runs take notice.
	gcPercent = 100
	// maxThreads: what the agent does between system calls is little, and handing it from thread to thread costs more than a second
	// one gives: a tenth of the runs a second, and a third of the agent's own time.
	maxThreads = 1
)

// Init is the `init` subcommand. It returns the exit code.
func Init() int {
	// First of all: from now on nobody inside can trace this process, or open its memory and descriptors by /proc.
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 0, 0); errno != 0 {
		log.Printf("shoal: cannot protect the agent from code inside: %v", errno)
		return 1
	}
	if os.Getpid() != 1 {
		log.Print("shoal: `agent init` is for the first process of a container only")
		return 1
	}
	// What the engine may have left open is not for children to inherit. Kernels before 5.11 do not know this call.
	syscall.RawSyscall(sysCloseRange, 3, ^uintptr(0)>>1, closeRangeCloexec)
	runtime.GOMAXPROCS(min(maxThreads, runtime.NumCPU()))
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(softMemory)
	post, err := readPost()
	if err != nil {
		log.Printf("shoal: %v", err)
		return 1
	}
	terminate := heedSignals()
	code, err := serve(post, terminate)
	if err != nil {
		log.Printf("shoal: %v", err)
	}
	return code
}

// post is what the engine tells in the environment; it is taken out of it before any child could see it.
type post struct {
	socket   string
	orphan   time.Duration
	deadline time.Duration
	defaults proc.Defaults
}

func readPost() (*post, error) {
	take := map[string]string{}
	for _, entry := range os.Environ() {
		if name, value, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "SHOAL_") {
			take[name] = value
			os.Unsetenv(name)
		}
	}
	p := &post{socket: take["SHOAL_SOCKET"], orphan: defaultOrphan}
	if p.socket == "" {
		p.socket = defaultSocket
	}
	for name, where := range map[string]*time.Duration{"SHOAL_ORPHAN_S": &p.orphan, "SHOAL_DEADLINE_S": &p.deadline} {
		text := take[name]
		if text == "" {
			continue
		}
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil || !(seconds > 0 && seconds < 1e9) {
			return nil, fmt.Errorf("%s=%q is not a number of seconds", name, text)
		}
		*where = time.Duration(seconds * float64(time.Second))
	}
	p.defaults = proc.Defaults{Env: os.Environ(), Workdir: take["SHOAL_WORKDIR"], User: take["SHOAL_USER"]}
	if p.defaults.Workdir == "" {
		var err error
		if p.defaults.Workdir, err = os.Getwd(); err != nil {
			p.defaults.Workdir = "/"
		}
	}
	return p, nil
}

// heedSignals takes every signal that could end this process: code inside may send them, and only SIGTERM, from the engine as a
// rule, means anything. They are taken rather than ignored because children would inherit that.
func heedSignals() <-chan os.Signal {
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	var others []os.Signal
	for n := syscall.Signal(1); n <= 64; n++ {
		switch n {
		case syscall.SIGKILL, syscall.SIGSTOP: // nobody can take them
		case syscall.SIGTERM, syscall.SIGCHLD: // taken elsewhere
		case syscall.SIGURG, syscall.SIGPROF, 32, 33: // the runtime's own
		default:
			others = append(others, n)
		}
	}
	// Nobody receives from it: what does not fit is dropped.
	signal.Notify(make(chan os.Signal, 1), others...)
	return terminate
}

func serve(p *post, terminate <-chan os.Signal) (int, error) {
	activity := server.NewActivity()
	table, err := proc.NewTable(p.defaults, &users.Database{Passwd: "/etc/passwd", Group: "/etc/group"}, activity.Change)
	if err != nil {
		return 1, err
	}
	var once sync.Once
	ended := make(chan struct{})
	leave := func(grace time.Duration) {
		once.Do(func() {
			table.KillAll(grace)
			close(ended)
		})
	}
	if p.deadline > 0 {
		time.AfterFunc(p.deadline, func() { leave(defaultGrace) })
	}
	parker := &parker{socket: pin(p.socket), orphan: p.orphan, server: server.New(table, activity, leave)}
	go func() {
		if err := parker.park(); errors.Is(err, errOrphaned) {
			log.Printf("shoal: %v", err)
		}
		leave(defaultGrace)
	}()
	go func() {
		<-terminate
		leave(defaultGrace)
	}()
	<-ended
	return 0, nil
}

// pin names a socket through a descriptor of its directory, for good: root inside may move the directories above a mount away and
// put its own in their place, and must not become the relay by that. Without /proc there is only the plain name.
func pin(socket string) string {
	directory, err := syscall.Open(filepath.Dir(socket), syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return socket
	}
	pinned := "/proc/self/fd/" + strconv.Itoa(directory)
	if _, err := os.Stat(pinned); err != nil {
		syscall.Close(directory)
		return socket
	}
	return pinned + "/" + filepath.Base(socket)
}
