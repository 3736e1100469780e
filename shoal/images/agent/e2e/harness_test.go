// Package e2e runs the protocol against the real program: a relay, and an agent that is the first process of a pid namespace
// of its own. It needs root and util-linux.
package e2e

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"shoal/agent/internal/frame"
	"shoal/agent/internal/token"
)

const (
	key     = "c-test"
	patient = 20 * time.Second
)

var (
	binary string
	secret = []byte("0123456789abcdef0123456789abcdef")
	serial atomic.Int64
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "shoal-agent")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "agent")
		build := exec.Command("go", "build", "-ldflags", "-E shoal_agent_enter", "-o", binary, "shoal/agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s\n", out)
			return 1
		}
		return m.Run()
	}())
}

func newID() string { return "p-t" + strconv.FormatInt(serial.Add(1), 36) }

// node is a relay and, once started, one agent.
type node struct {
	t       testing.TB
	root    string
	relay   *exec.Cmd
	address string
	agent   *exec.Cmd

	secure      bool // the relay speaks TLS
	fingerprint string
}

// startNode starts a relay for one container directory.
func startNode(t testing.TB) *node {
	t.Helper()
	return openNode(&node{t: t, root: t.TempDir()})
}

func openNode(n *node) *node {
	t := n.t
	t.Helper()
	if err := os.Mkdir(filepath.Join(n.root, key), 0o755); err != nil {
		t.Fatal(err)
	}
	n.startRelay("127.0.0.1:0")
	t.Cleanup(func() { n.killRelay() })
	return n
}

// overBoth runs a test over TCP and over TLS.
func overBoth(t *testing.T, test func(t *testing.T, n *node)) {
	for name, secure := range map[string]bool{"tcp": false, "tls": true} {
		t.Run(name, func(t *testing.T) {
			n := openNode(&node{t: t, root: t.TempDir(), secure: secure})
			n.startAgent()
			test(t, n)
		})
	}
}

// start starts both, and waits until a client is admitted.
func start(t testing.TB, env ...string) *node {
	t.Helper()
	n := startNode(t)
	n.startAgent(env...)
	return n
}

func (n *node) startRelay(listen string) {
	n.t.Helper()
	config, _ := json.Marshal(map[string]any{
		"root": n.root, "listen": listen, "secret": hex.EncodeToString(secret),
		"control": filepath.Join(n.root, "control"), "idle_exit_s": 3600, "tls": n.secure,
	})
	n.relay = exec.Command(binary, "relay")
	n.relay.Stdin = strings.NewReader(string(config) + "\n")
	n.relay.Stderr = testLog{n.t, "relay"}
	out, err := n.relay.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.relay.Start(); err != nil {
		n.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		n.t.Fatalf("the relay did not start: %v", err)
	}
	var told struct {
		Address     string `json:"address"`
		Fingerprint string `json:"fingerprint"`
		Pid         int    `json:"pid"`
	}
	if err := json.Unmarshal(line, &told); err != nil || told.Pid != n.relay.Process.Pid {
		n.t.Fatalf("the relay said %q", line)
	}
	n.address, n.fingerprint = told.Address, told.Fingerprint
}

func (n *node) killRelay() {
	n.relay.Process.Kill()
	n.relay.Wait()
}

func (n *node) startAgent(env ...string) {
	n.t.Helper()
	shown := token.AgentSecret(secret, key)
	if err := os.WriteFile(filepath.Join(n.root, key, "secret"), shown, 0o444); err != nil {
		n.t.Fatal(err)
	}
	n.agent = exec.Command("unshare", "--pid", "--fork", "--mount-proc", binary, "init")
	n.agent.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that both end together
	n.agent.Env = append(os.Environ(), "SHOAL_SOCKET="+filepath.Join(n.root, key, "relay.sock"), "SHOAL_ORPHAN_S=60")
	n.agent.Env = append(n.agent.Env, env...)
	n.agent.Stderr = testLog{n.t, "agent"}
	if err := n.agent.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		syscall.Kill(-n.agent.Process.Pid, syscall.SIGKILL)
		n.agent.Wait()
	})
}

// agentPid is the agent's number out here.
func (n *node) agentPid() int {
	n.t.Helper()
	path := fmt.Sprintf("/proc/%d/task/%d/children", n.agent.Process.Pid, n.agent.Process.Pid)
	deadline := time.Now().Add(patient)
	for time.Now().Before(deadline) {
		content, _ := os.ReadFile(path)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(content))); err == nil {
			return pid
		}
		time.Sleep(time.Millisecond)
	}
	n.t.Fatal("the agent has no pid")
	return 0
}

type testLog struct {
	t   testing.TB
	who string
}

func (l testLog) Write(p []byte) (int, error) {
	fmt.Fprintf(os.Stderr, "%s: %s", l.who, p)
	return len(p), nil
}

// control sends one order to the relay and returns its answer.
func (n *node) control(order string) map[string]any {
	n.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(n.root, "control"))
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintln(conn, order)
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		n.t.Fatal(err)
	}
	var answer map[string]any
	if err := json.Unmarshal(line, &answer); err != nil {
		n.t.Fatal(err)
	}
	return answer
}

// eventually waits until the condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patient)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// raw is a connection to the relay without any manners.
func (n *node) raw(hello string) (net.Conn, frame.Frame, error) {
	n.t.Helper()
	conn, err := net.Dial("tcp", n.address)
	if err != nil {
		n.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patient))
	if _, err := conn.Write(frame.Append(nil, frame.Hello, 0, []byte(hello))); err != nil {
		n.t.Fatal(err)
	}
	f, err := frame.NewDecoder(io.Reader(conn)).Next()
	return conn, f, err
}
