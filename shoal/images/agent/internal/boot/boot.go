// Package boot runs the agent as the first process of its container: it reads its settings, waits for clients at the
// relay, and shuts down in order.
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
	sysCloseRange     = 436 // the same on every architecture
	closeRangeCloexec = 4
	defaultGrace      = 2 * time.Second
	// softMemory is the heap size at which the collector begins to work hard. A busy agent needs far less.
	softMemory = 192 << 20
	// gcPercent keeps the heap of a busy agent below 4 MiB. A lower value collects so often that runs become slower.
	gcPercent = 100
	// maxThreads is 1 because the agent does little between system calls. Moving work between two threads costs more
	// than the second one gains: a tenth of the runs per second, and a third of the agent's own CPU time.
	maxThreads = 1
)

// Init runs the `init` subcommand and returns its exit code.
func Init() int {
	if os.Getpid() != 1 {
		log.Print("shoal: `agent init` must be the first process of a container")
		return 1
	}
	if err := confine(); err != nil {
		log.Printf("shoal: cannot take on the filter of system calls: %v", err)
		return 1
	}
	if err := shield(); err != nil {
		log.Printf("shoal: cannot protect the agent from code inside: %v", err)
		return 1
	}
	// Children must not inherit descriptors that the engine left open. Kernels before 5.11 lack this call.
	syscall.RawSyscall(sysCloseRange, 3, ^uintptr(0)>>1, closeRangeCloexec)
	runtime.GOMAXPROCS(min(maxThreads, runtime.NumCPU()))
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(softMemory)
	reserveThreads(spareThreads)
	post, err := readPost()
	if err != nil {
		log.Printf("shoal: %v", err)
		return 1
	}
	handleSignals()
	code, err := serve(post)
	if err != nil {
		log.Printf("shoal: %v", err)
	}
	return code
}

// post holds the settings that the engine passes in the environment. They are removed from it before a child starts.
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

// handleSignals handles every signal that could end this process or stand it still, because code in the sandbox may send
// them. None has an effect, SIGTERM neither: nothing tells who sent it, and the engine stops containers by SIGKILL. They
// are handled and not ignored, because children would inherit an ignored signal. Go itself catches all others, and does
// nothing then (see package os/signal).
func handleSignals() {
	// Nobody receives from this channel: once it is full, further signals are dropped.
	signal.Notify(
		make(chan os.Signal, 1),
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE, // would end it
		syscall.SIGQUIT, syscall.SIGILL, syscall.SIGTRAP, syscall.SIGABRT, syscall.SIGSTKFLT, syscall.SIGSYS,
		syscall.SIGBUS, syscall.SIGFPE, syscall.SIGSEGV,
		syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, // would stop it
	)
}

func serve(p *post) (int, error) {
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
	restored := func() {}
	if p.deadline > 0 {
		timer := time.AfterFunc(p.deadline, func() { leave(defaultGrace) })
		restored = func() { timer.Reset(p.deadline) } // it is a sandbox of its own from then on
	}
	socket := pin(p.socket)
	secret, err := readSecret(filepath.Join(filepath.Dir(socket), secretName))
	if err != nil {
		return 1, err
	}
	parker := &parker{
		socket: socket, secret: secret, orphan: p.orphan, server: server.New(table, activity, leave), restorable: onGvisor(),
		restored: restored, unreached: activity.Touch,
	}
	go func() {
		if err := parker.park(); errors.Is(err, errOrphaned) {
			log.Printf("shoal: %v", err)
		}
		leave(defaultGrace)
	}()
	<-ended
	return 0, nil
}

// readSecret reads what this agent shows to the relay, which then removes the file: code in the sandbox never sees it.
func readSecret(path string) ([]byte, error) {
	secret, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the node gave no secret to this agent: %w", err)
	}
	if len(secret) != secretSize {
		return nil, fmt.Errorf("the secret of this agent has %d bytes, not %d", len(secret), secretSize)
	}
	return secret, nil
}

// pin returns a path to the socket that goes through an open descriptor of its directory. Root in the sandbox may
// replace the directories above a mount by its own, and must not be able to pose as the relay that way. Without /proc,
// pin returns the plain path.
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
