package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"shoal/agent/internal/frame"
)

func TestARelayThatWasKilledLosesNothing(t *testing.T) {
	n := start(t)
	c := n.dial()
	id := c.exec(nil, sh("for i in $(seq 1 300); do echo line $i; sleep 0.005; done")...)
	out := c.open(object{"op": "output", "id": id, "fd": 1, "offset": 0}, nil)
	first, _ := out.next()
	offset := len(first.Payload)
	text := string(first.Payload)
	n.killRelay()
	r := out.result()
	if !r.lost {
		t.Fatal("the connection outlived its relay")
	}
	text += string(r.out)
	offset += len(r.out)
	n.startRelay(n.address)
	again := n.dial()
	rest := again.must(object{"op": "output", "id": id, "fd": 1, "offset": offset})
	text += string(rest.out)
	var want strings.Builder
	for i := range 300 {
		fmt.Fprintf(&want, "line %d\n", i+1)
	}
	if text != want.String() || len(rest.events) != 0 {
		t.Errorf("output was lost: %d bytes of %d, %v", len(text), want.Len(), rest.events)
	}
	again.must(object{"op": "wait", "id": id}).ended(t, 0)
}

func TestAnImpostorInsideIsRefused(t *testing.T) {
	n := start(t)
	c := n.dial()
	socket := filepath.Join(n.root, key, "relay.sock")
	script := `
import socket, sys
s = socket.socket(socket.AF_UNIX); s.settimeout(15); s.connect(sys.argv[1])
try: print(len(s.recv(100)))
except ConnectionError: print(0)
`
	if _, err := exec.LookPath("python3"); err != nil {
		t.Fatal("python3 is needed to dial the socket from inside")
	}
	for range 3 {
		if r := c.run(nil, "python3", "-c", script, socket).ended(t, 0); string(r.out) != "0\n" {
			t.Errorf("it was let in: %q, %q", r.out, r.err)
		}
		n.dial().run(nil, "true").ended(t, 0) // and the real one is still the one that is reached
	}
	// Neither is the first process of a namespace that code inside makes for itself.
	r := c.run(nil, "unshare", "--pid", "--fork", "python3", "-c", script, socket).ended(t, 0)
	if string(r.out) != "0\n" {
		t.Errorf("it was let in: %q", r.out)
	}
}

func TestTheFirstProcessOfAnotherNamespaceIsRefused(t *testing.T) {
	n := start(t)
	n.dial().run(nil, "true").ended(t, 0) // the agent has shown its secret
	script := `
import os, socket, sys
assert os.getpid() == 1
s = socket.socket(socket.AF_UNIX); s.settimeout(15); s.connect(sys.argv[1])
try: s.sendall(b"x" * 32); print(len(s.recv(100)))
except ConnectionError: print(0)
`
	socket := filepath.Join(n.root, key, "relay.sock")
	said, err := exec.Command("unshare", "--pid", "--fork", "python3", "-c", script, socket).Output()
	if err != nil || string(said) != "0\n" {
		t.Errorf("it was let in: %q, %v", said, err)
	}
	if _, err := os.Stat(filepath.Join(n.root, key, "secret")); !os.IsNotExist(err) {
		t.Errorf("the secret can still be read: %v", err)
	}
	n.killRelay()
	n.startRelay(n.address)
	n.dial().run(nil, "true").ended(t, 0) // which a new relay knows as well
}

func TestTheAgentIsOutOfReachInside(t *testing.T) {
	n := start(t)
	c := n.dial()
	// Without the capabilities that look into others, which no sandbox has.
	drop := []string{"setpriv", "--bounding-set=-sys_ptrace,-perfmon,-sys_admin", "--inh-caps=-all", "sh", "-c"}
	for _, script := range []string{"readlink /proc/1/fd/0", "cat < /proc/1/fd/0", "cat /proc/1/environ", "head -c1 /proc/1/mem"} {
		if r := c.run(nil, append(drop, script)...); r.ok == nil || r.ok["exit"] == float64(0) {
			t.Errorf("%s: %v %v %q", script, r.ok, r.fault, r.out)
		}
	}
	// And no signal from inside ends it.
	c.run(nil, sh("for s in $(seq 1 64); do kill -$s 1; done")...).ended(t, 0)
	c.run(nil, "true").ended(t, 0)
	// Nor does it inherit limits and scheduling that code inside has set for the agent.
	meddle := []string{"setpriv", "--bounding-set=-sys_resource", "--inh-caps=-all", "sh", "-c",
		"for t in /proc/1/task/*; do prlimit --pid ${t##*/} --nofile=9 --cpu=1 --stack=64 --as=64; " +
			"taskset -p 1 ${t##*/}; ionice -c3 -p ${t##*/}; done; true"}
	show := sh("ulimit -n -t -s -v; taskset -p $$ | sed 's/.*://'; ionice -p $$")
	before := c.run(nil, show...).ended(t, 0)
	c.run(nil, meddle...).ended(t, 0)
	if after := c.run(nil, show...).ended(t, 0); string(after.out) != string(before.out) {
		t.Errorf("code inside has changed what children inherit:\n%s%s", before.out, after.out)
	}
	// The agent adds nothing to what it was started with; here that is what the shell around this test ignores.
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	r := c.run(nil, "cat", "/proc/self/status").ended(t, 0)
	if added := ignoredSignals(t, r.out) &^ ignoredSignals(t, status); added != 0 {
		t.Errorf("children ignore signals of the agent's own: %x", added)
	}
}

// ignoredSignals is the set of them that a process's status tells of.
func ignoredSignals(t *testing.T, status []byte) uint64 {
	for _, line := range strings.Split(string(status), "\n") {
		if mask, ok := strings.CutPrefix(line, "SigIgn:"); ok {
			signals, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return signals
		}
	}
	t.Fatal("the kernel tells no SigIgn")
	return 0
}

func TestChildrenAreTheKernelsFirstChoice(t *testing.T) {
	n := start(t)
	c := n.dial()
	// The agent says so once it has started it, so it may be a moment late.
	if r := c.run(nil, sh("for i in $(seq 300); do [ $(cat /proc/self/oom_score_adj) = 500 ] && break; sleep 0.05; done; cat /proc/self/oom_score_adj")...).ended(t, 0); string(r.out) != "500\n" {
		t.Errorf("got %q", r.out)
	}
	if own, _ := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", n.agentPid())); string(own) == "500\n" {
		t.Error("the agent's own changed")
	}
}

func TestShutdownIsOrderly(t *testing.T) {
	n := start(t)
	c := n.dial()
	file := t.TempDir() + "/ended"
	for _, id := range []string{
		c.exec(nil, sh("trap 'echo term > "+file+"; exit' TERM; echo ready; while :; do sleep 0.01; done")...),
		c.exec(nil, sh("trap '' TERM; echo ready; while :; do sleep 0.01; done")...),
	} {
		if f, _ := c.open(object{"op": "output", "id": id, "fd": 1, "offset": 0}, nil).next(); string(f.Payload) != "ready\n" {
			t.Fatalf("got %q", f.Payload)
		}
	}
	n.dial("exec", "files").do(object{"op": "shutdown", "grace_ms": 1}).want(t, "permission_denied", "")
	began := time.Now()
	c.must(object{"op": "shutdown", "grace_ms": 300})
	if took := time.Since(began); took < 250*time.Millisecond || took > patient {
		t.Errorf("took %v", took)
	}
	if err := n.agent.Wait(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	if content, _ := os.ReadFile(file); string(content) != "term\n" {
		t.Errorf("no SIGTERM: %q", content)
	}
}

func TestOrphanedOrLateAgentsEnd(t *testing.T) {
	late := startNode(t)
	late.startAgent("SHOAL_DEADLINE_S=0.3")
	if err := late.agent.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	orphan := startNode(t)
	orphan.killRelay()
	orphan.startAgent("SHOAL_ORPHAN_S=0.3")
	if err := orphan.agent.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestIdleWaitsForQuiet(t *testing.T) {
	n := start(t)
	c := n.dial()
	c.must(startOf("exec", "p-main", object{"tail": true}, "sleep", "60"))
	c.open(object{"op": "wait", "id": "p-main"}, nil)
	c.open(object{"op": "output", "id": "p-main", "fd": 1, "offset": 0, "peek": true}, nil)
	began := time.Now() // before that: how late we hear of its start makes no difference
	c.exec(nil, "sleep", "0.5")
	r := c.must(object{"op": "idle", "after_ms": 300})
	if took := time.Since(began); took < 750*time.Millisecond || took > patient || r.ok["idle_ms"].(float64) < 300 {
		t.Errorf("after %v: %v", took, r.ok)
	}
}

func TestWhatIsOutOfTheGrammarEndsTheConnection(t *testing.T) {
	n := start(t)
	for name, breach := range map[string]func(c *client){
		"bad JSON":           func(c *client) { c.openRaw([]byte("{"), nil, false) },
		"invalid UTF-8":      func(c *client) { c.openRaw([]byte("{\"op\":\"\xff\"}"), nil, false) },
		"a length too large": func(c *client) { c.write([]byte{0xff, 0, 0, 0, 4, 0, 0, 0, 1}) },
		"an unknown kind":    func(c *client) { c.write(frame.Append(nil, 77, 1, nil)) },
		"a second HELLO":     func(c *client) { c.write(frame.Append(nil, frame.Hello, 0, []byte("{}"))) },
		"a REPLY":            func(c *client) { c.write(frame.Append(nil, frame.Reply, 1, []byte("{}"))) },
		"an open stream": func(c *client) {
			c.exec(nil, "sleep", "1")
			c.write(frame.Append(nil, frame.Open, 900, []byte(`{"op":"idle","after_ms":9999}`)))
			c.write(frame.Append(nil, frame.Open, 900, []byte(`{"op":"ping"}`)))
		},
		"data beyond the credit": func(c *client) {
			id := c.exec(object{"stdin": true}, "sleep", "9")
			in := c.open(object{"op": "stdin", "id": id, "offset": 0}, nil)
			in.event()
			for range 3 {
				in.data(make([]byte, 1<<20))
			}
		},
	} {
		c := n.dial()
		breach(c)
		eventually(t, name+" ends it", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.err != nil })
	}
	c := n.dial()
	c.write(frame.Append(nil, frame.Data, 500, []byte("for nobody"))) // may have crossed a REPLY
	c.write(frame.Append(nil, frame.Cancel, 501, nil))
	c.run(nil, "true").ended(t, 0)
}

func TestTooManyStreams(t *testing.T) {
	c := start(t).dial()
	var last *call
	for range 4097 {
		last = c.open(object{"op": "idle", "after_ms": 100_000}, nil)
	}
	last.result().want(t, "quota_exceeded", "")
}

func TestTheRelayRefuses(t *testing.T) {
	n := start(t)
	for hello, code := range map[string]string{
		`{"v":1,"token":"a.b","wait_ms":0}`: "unauthenticated",
		`{"v":1,"token":"","wait_ms":0}`:    "unauthenticated",
		`{"v":1,"token":"` + strings.Replace(tokenFor("exec"), ".", "A.", 1) + `","wait_ms":0}`: "unauthenticated",
		`{"v":7,"token":"a.b","wait_ms":0}`:                                                     "invalid_request",
		`{"v":1,"token":"` + tokenFor("exec") + `","wait_ms":999999}`:                           "invalid_request",
	} {
		_, f, err := n.raw(hello)
		if err != nil || !strings.Contains(string(f.Payload), `"`+code+`"`) {
			t.Errorf("%.40s: %v %s", hello, err, f.Payload)
		}
	}
	n.dial().run(nil, "true").ended(t, 0)
	eventually(t, "the agent is parked", func() bool { return len(n.control(`{"op":"info"}`)["connected"].([]any)) == 1 })
	c := n.dial()
	n.control(`{"op":"remove","key":"` + key + `"}`)
	n.control(`{"op":"remove","key":"` + key + `"}`)
	eventually(t, "remove ends connections", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.err != nil })
	if _, f, err := n.raw(`{"v":1,"token":"` + tokenFor("exec") + `","wait_ms":0}`); err != nil || !strings.Contains(string(f.Payload), "not_found") {
		t.Errorf("%v %s", err, f.Payload)
	}
	n.control(`{"op":"add","key":"` + key + `"}`)
	n.dial().run(nil, "true").ended(t, 0)
}

func TestManyClientsAtOnce(t *testing.T) {
	n := start(t)
	done := make(chan bool, 50)
	for range 50 {
		go func() {
			c := n.dial()
			done <- c.run(nil, "true").ok != nil
		}()
	}
	for range 50 {
		if !<-done {
			t.Error("one was not served")
		}
	}
}
