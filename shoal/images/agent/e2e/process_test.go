package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"shoal/agent/internal/frame"
)

func TestRunTellsOutputErrorsAndExit(t *testing.T) {
	c := start(t).dial()
	r := c.run(nil, sh("echo out; echo err >&2; exit 3")...).ended(t, 3)
	if string(r.out) != "out\n" || string(r.err) != "err\n" || r.ok["truncated"] != false {
		t.Errorf("got %q, %q, %v", r.out, r.err, r.ok)
	}
	c.run(nil, sh("kill -9 $$")...).ended(t, -9)
	binary := c.run(nil, sh(`printf '\000\377\n'`)...).ended(t, 0)
	if !bytes.Equal(binary.out, []byte{0, 255, '\n'}) {
		t.Errorf("not binary-safe: %v", binary.out)
	}
}

func TestRunTakesInput(t *testing.T) {
	c := start(t).dial()
	for _, size := range []int{0, 1, 300_000} {
		input := bytes.Repeat([]byte("x"), size)
		r := c.open(startOf("run", newID(), object{"stdin": true}, "cat"), input).result().ended(t, 0)
		if !bytes.Equal(r.out, input) {
			t.Errorf("%d bytes came back as %d", size, len(r.out))
		}
	}
	// One that does not want its input is no error.
	c.open(startOf("run", newID(), object{"stdin": true}, "true"), bytes.Repeat([]byte("x"), 500_000)).result().ended(t, 0)
	if r := c.run(nil, "cat").ended(t, 0); len(r.out) != 0 {
		t.Error("without stdin there is input")
	}
}

func TestRunBoundsItsOutput(t *testing.T) {
	c := start(t).dial()
	r := c.run(object{"max_output": 1000}, sh("head -c 3000000 /dev/zero; echo done >&2")...).ended(t, 0)
	if len(r.out) != 1000 || r.ok["truncated"] != true || string(r.err) != "done\n" {
		t.Errorf("got %d bytes, %q, %v", len(r.out), r.err, r.ok)
	}
	if r := c.run(object{"max_output": 0}, "echo", "x").ended(t, 0); len(r.out) != 0 || r.ok["truncated"] != true {
		t.Errorf("got %q, %v", r.out, r.ok)
	}
	r = c.run(nil, sh("head -c 5000000 /dev/zero")...).ended(t, 0)
	if len(r.out) != 5_000_000 || r.ok["truncated"] != false {
		t.Errorf("got %d bytes, %v", len(r.out), r.ok)
	}
}

func TestRunDoesNotWaitForWhatStaysInTheBackground(t *testing.T) {
	c := start(t).dial()
	began := time.Now()
	r := c.run(nil, sh("sleep 30 & echo $!")...).ended(t, 0)
	if took := time.Since(began); took > patient {
		t.Errorf("took %v", took)
	}
	c.run(nil, "kill", "-0", strings.TrimSpace(string(r.out))).ended(t, 0) // it lives
}

func TestTheSameRunSentAgainRunsOnce(t *testing.T) {
	n := start(t)
	c := n.dial()
	file := t.TempDir() + "/count"
	request := startOf("run", newID(), nil, sh("echo ran | tee -a "+file+"; sleep 0.3")...)
	lost := n.dial()
	lost.open(request, nil)
	eventually(t, "it runs", func() bool { _, err := os.Stat(file); return err == nil })
	lost.conn.Close()
	for range 2 { // it joins, and then gets the answer that was kept
		if r := c.do(request).ended(t, 0); string(r.out) != "ran\n" {
			t.Errorf("got %q", r.out)
		}
	}
	if content, _ := os.ReadFile(file); string(content) != "ran\n" {
		t.Errorf("it ran more than once: %q", content)
	}
	big := startOf("run", newID(), nil, sh("head -c 100000 /dev/zero")...)
	c.do(big).ended(t, 0)
	eventually(t, "a long answer is not kept", func() bool { return c.do(big).fault["code"] == "failed_precondition" })
	request["op"] = "exec"
	c.do(request).want(t, "already_exists", "")
}

func TestBadStartsAreRefusedWithNothingStarted(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		if err := os.WriteFile(dir+"/"+name, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return dir + "/" + name
	}
	c := start(t).dial()
	for _, bad := range []struct {
		argv        []string
		more        object
		code, field string
		exit        float64
		says        string
	}{
		{argv: []string{"no-such-program"}, code: "command_not_found", exit: 127, says: "PATH"},
		{argv: []string{"/no/such"}, code: "command_not_found", exit: 127},
		{argv: []string{write("plain", "x", 0o644)}, code: "command_not_executable", exit: 126, says: "chmod"},
		{argv: []string{write("noformat", "x", 0o755)}, code: "command_not_executable", exit: 126, says: "#!"},
		{argv: []string{write("lost", "#!/no/interpreter\n", 0o755)}, code: "command_not_found", exit: 127, says: "/no/interpreter"},
		{argv: []string{"/tmp"}, code: "command_not_executable", exit: 126, says: "directory"},
		{argv: []string{"true"}, more: object{"workdir": "/no/such"}, code: "invalid_request", field: "workdir"},
		{argv: []string{"true"}, more: object{"workdir": "tmp"}, code: "relative_path", field: "workdir"},
		{argv: []string{"true"}, more: object{"user": "nobody-here"}, code: "user_not_found", field: "user"},
		{argv: []string{"true"}, more: object{"user": "0:nogroup-here"}, code: "user_not_found", field: "user"},
		{argv: []string{"true"}, more: object{"limits": object{"wings": 2}}, code: "invalid_request", field: "limits"},
		{argv: []string{"true"}, more: object{"timeout_ms": -1}, code: "invalid_request", field: "timeout_ms"},
		{argv: []string{"true"}, more: object{"env": object{"A=B": "x"}}, code: "invalid_request", field: "env"},
		{argv: []string{"a\x00b"}, code: "invalid_request", field: "argv"},
		{argv: []string{"true", strings.Repeat("x", 200_000)}, code: "invalid_request", field: "argv"},
		{argv: []string{}, code: "invalid_request", field: "argv"},
		{argv: []string{"true"}, more: object{"wings": 2}, code: "invalid_request", field: "wings"},
		{argv: []string{"true"}, more: object{"id": "../x"}, code: "invalid_request", field: "id"},
		{argv: []string{"true"}, more: object{"max_output": 1 << 40}, code: "invalid_request", field: "max_output"},
		{argv: []string{"true"}, more: object{"user": 5}, code: "invalid_request", field: "user"},
	} {
		r := c.run(bad.more, bad.argv...)
		r.want(t, bad.code, bad.field)
		if bad.exit != 0 && r.fault["exit_code"] != bad.exit {
			t.Errorf("%v: exit code %v", bad.argv, r.fault["exit_code"])
		}
		if message, _ := r.fault["message"].(string); !strings.Contains(message, bad.says) {
			t.Errorf("%v: %q does not say %q", bad.argv, message, bad.says)
		}
	}
	if up := c.must(object{"op": "ping"}); up.ok["processes"] != float64(0) {
		t.Errorf("something is left: %v", up.ok)
	}
	c.do(object{"op": "fly"}).want(t, "invalid_request", "op")
	c.do(object{"op": "wait", "id": "p-nobody"}).want(t, "process_not_found", "id")
}

func TestTheEnvironmentOfAProcess(t *testing.T) {
	n := start(t, "SHOAL_USER=", "SHOAL_WORKDIR=/tmp", "SHOAL_ANYTHING=secret", "KEEP=kept", "DROP=dropped")
	c := n.dial()
	r := c.run(object{"env": object{"DROP": nil, "MORE": "more"}}, sh("pwd; env")...).ended(t, 0)
	env := string(r.out)
	for _, part := range []string{"/tmp\n", "KEEP=kept\n", "MORE=more\n", "SHOAL_PROCESS=p-", "HOME="} {
		if !strings.Contains(env, part) {
			t.Errorf("%q is missing", part)
		}
	}
	for _, part := range []string{"DROP=", "SHOAL_ANYTHING", "SHOAL_SOCKET", "SHOAL_WORKDIR"} {
		if strings.Contains(env, part) {
			t.Errorf("%q is there", part)
		}
	}
	if r := c.run(object{"user": "65534:65533"}, sh("id -u; id -g; id -G")...).ended(t, 0); string(r.out) != "65534\n65533\n65533\n" {
		t.Errorf("got %q", r.out)
	}
	if r := c.run(object{"user": "daemon", "env": object{"HOME": nil}}, sh("id -un; echo ${HOME-none}")...).ended(t, 0); string(r.out) != "daemon\nnone\n" {
		t.Errorf("got %q", r.out)
	}
	dir := t.TempDir() + "/made/for"
	c.must(object{"op": "configure", "env": object{"KEEP": nil, "GIVEN": "given"}, "workdir": dir, "user": "0"})
	if r := c.run(nil, sh("pwd; echo ${KEEP-none} $GIVEN")...).ended(t, 0); string(r.out) != dir+"\nnone given\n" {
		t.Errorf("got %q", r.out)
	}
	n.dial("exec").do(object{"op": "configure"}).want(t, "permission_denied", "")
	n.dial("files").run(nil, "true").want(t, "permission_denied", "")
}

func TestLimitsAreTheProcesss(t *testing.T) {
	c := start(t).dial()
	limits := object{"nofile": 64, "core": 0, "fsize": 4096, "stack": nil}
	if r := c.run(object{"limits": limits}, sh("ulimit -n; ulimit -c; head -c 10000 /dev/zero > "+t.TempDir()+"/f")...); string(r.out) != "64\n0\n" || r.ok["exit"] == float64(0) {
		t.Errorf("got %q, %v, %v", r.out, r.ok, r.fault)
	}
	if r := c.run(nil, sh("ulimit -n")...).ended(t, 0); string(r.out) == "64\n" {
		t.Error("the limit stayed")
	}
	c.run(object{"limits": object{"nofile": 64}}, "/no/such").want(t, "command_not_found", "argv")
}

func TestATimeoutKillsTheWholeTree(t *testing.T) {
	n := start(t)
	c := n.dial()
	dir := t.TempDir()
	// A child, one in a session of its own, and a grandchild whose parents are gone and that left session and group.
	script := fmt.Sprintf(`cd %s
sleep 300 & echo $! > child
setsid sleep 301 & echo $! > session
(setsid sh -c 'sleep 302 & echo $! > orphan' &)
(setsid su -s /bin/sh nobody -c 'exec sleep 303' &)
trap '' TERM INT HUP
sleep 304`, dir)
	began := time.Now()
	r := c.run(object{"timeout_ms": 1000}, sh(script)...)
	if r.ended(t, -9); r.ok["timed_out"] != true || time.Since(began) > patient {
		t.Errorf("got %v after %v", r.ok, time.Since(began))
	}
	eventually(t, "all are gone", func() bool {
		left := c.run(nil, sh("ps -eo args | grep -c '[s]leep 30[0-4]'")...)
		return string(left.out) == "0\n"
	})
}

func TestSignalsReachTheGroupOrTheTree(t *testing.T) {
	c := start(t).dial()
	id := c.exec(nil, sh("trap 'echo term; exit 5' TERM; setsid sleep 100 & echo ready; while :; do sleep 0.01; done")...)
	out := c.open(object{"op": "output", "id": id, "fd": 1, "offset": 0}, nil)
	out.next()
	c.must(object{"op": "signal", "id": id, "signal": 15, "tree": false})
	c.must(object{"op": "wait", "id": id}).ended(t, 5)
	c.must(object{"op": "signal", "id": id, "signal": 9, "tree": true}) // ended: nothing
	tree := c.exec(nil, sh("setsid sleep 123 & sleep 124")...)
	time.Sleep(50 * time.Millisecond)
	c.must(object{"op": "signal", "id": tree, "signal": 9, "tree": true})
	c.must(object{"op": "wait", "id": tree}).ended(t, -9)
	eventually(t, "the whole tree is gone", func() bool { // what was killed may take a moment to die
		return string(c.run(nil, sh("ps -eo args | grep -c '[s]leep 12[34]'")...).out) == "0\n"
	})
	c.do(object{"op": "signal", "id": tree, "signal": 99, "tree": false}).want(t, "invalid_request", "signal")
}

func TestClearKillsWhatRuns(t *testing.T) {
	c := start(t).dial()
	id := c.exec(nil, sh("trap '' TERM; sleep 600 & sleep 600")...)
	c.must(object{"op": "clear"})
	c.must(object{"op": "wait", "id": id}).ended(t, -9)
	c.run(nil, "true").ended(t, 0)
	c.must(startOf("exec", "p-main", nil, "sleep", "600"))
	c.do(object{"op": "clear"}).want(t, "failed_precondition", "")
}

func TestOrphansAreReaped(t *testing.T) {
	c := start(t).dial()
	c.run(nil, sh("for i in 1 2 3 4 5; do (sleep 0.05 &) ; done")...).ended(t, 0)
	eventually(t, "no zombie is left", func() bool {
		return string(c.run(nil, sh("ps -eo stat | grep -c ^Z")...).out) == "0\n"
	})
}

func TestStdinGoesOnWhereItIs(t *testing.T) {
	n := start(t)
	c := n.dial()
	id := c.exec(object{"stdin": true}, "cat")
	first := n.dial()
	in := first.open(object{"op": "stdin", "id": id, "offset": 0}, nil)
	if has := in.event()["offset"]; has != float64(0) {
		t.Fatalf("has %v", has)
	}
	in.data([]byte("hello "))
	out := c.open(object{"op": "output", "id": id, "fd": 1, "offset": 0}, nil)
	if f, _ := out.next(); string(f.Payload) != "hello " {
		t.Fatalf("got %q", f.Payload)
	}
	first.conn.Close()
	again := c.open(object{"op": "stdin", "id": id, "offset": 3}, nil)
	if has := again.event()["offset"]; has != float64(6) {
		t.Fatalf("has %v", has)
	}
	again.data([]byte("lo world"))
	again.end()
	if r := again.result(); r.ok["offset"] != float64(11) {
		t.Fatalf("got %v, %v", r.ok, r.fault)
	}
	if r := out.result(); string(r.out) != "world" {
		t.Errorf("got %q", r.out)
	}
	c.must(object{"op": "wait", "id": id}).ended(t, 0)
	none := c.exec(nil, "sleep", "0.01")
	c.do(object{"op": "stdin", "id": none, "offset": 0}).want(t, "failed_precondition", "")
	open := c.exec(object{"stdin": true}, "sleep", "5")
	c.do(object{"op": "stdin", "id": open, "offset": 7}).want(t, "invalid_request", "offset")
}

func TestANewWriterPutsTheOldOneOut(t *testing.T) {
	n := start(t)
	c := n.dial()
	gate := t.TempDir() + "/open"
	id := c.exec(object{"stdin": true}, sh("while [ ! -e "+gate+" ]; do sleep 0.01; done; wc -c")...) // does not read yet
	next := c.open(object{"op": "stdin", "id": id, "offset": 0}, nil)
	next.event()
	has := 0
	eventually(t, "a writer has filled the pipe", func() bool {
		old := next
		old.data(bytes.Repeat([]byte("x"), 200_000))
		time.Sleep(50 * time.Millisecond) // one that comes before the old one's data does puts that out, too
		next = c.open(object{"op": "stdin", "id": id, "offset": 0}, nil)
		has = int(next.event()["offset"].(float64))
		old.result().want(t, "failed_precondition", "")
		return has > 0
	})
	if has >= 200_000 {
		t.Errorf("a full pipe took %d", has)
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	next.data(bytes.Repeat([]byte("x"), 200_000))
	next.end()
	if r := next.result(); r.ok["offset"] != float64(200_000) {
		t.Errorf("got %v, %v", r.ok, r.fault)
	}
	if r := c.must(object{"op": "output", "id": id, "fd": 1, "offset": 0}); strings.TrimSpace(string(r.out)) != "200000" {
		t.Errorf("the process got %q", r.out)
	}
}

func TestAWriterThatSaysNothingIsPutOutToo(t *testing.T) {
	n := start(t)
	c := n.dial()
	id := c.exec(object{"stdin": true}, "cat")
	old := n.dial().open(object{"op": "stdin", "id": id, "offset": 0}, nil) // its client has vanished, and nobody noticed
	old.event()
	next := c.open(object{"op": "stdin", "id": id, "offset": 0}, nil)
	next.event()
	old.data([]byte("late"))
	old.result().want(t, "failed_precondition", "")
	next.data([]byte("word"))
	next.end()
	if r := next.result(); r.ok["offset"] != float64(4) {
		t.Errorf("got %v, %v", r.ok, r.fault)
	}
	if r := c.must(object{"op": "output", "id": id, "fd": 1, "offset": 0}); string(r.out) != "word" {
		t.Errorf("the process got %q", r.out)
	}
}

func TestATerminal(t *testing.T) {
	c := start(t).dial()
	id := c.exec(object{"pty": object{"rows": 24, "cols": 80}, "stdin": true, "user": "nobody"},
		sh("trap 'stty size' WINCH; tty < /dev/tty > /dev/null && stty size; line=; while [ -z \"$line\" ]; do read line; done; echo got $line; read more || echo eof")...)
	out := c.open(object{"op": "output", "id": id, "fd": 1, "offset": 0}, nil)
	var seen bytes.Buffer
	until := func(what string) {
		t.Helper()
		for !strings.Contains(seen.String(), what) {
			f, open := out.next()
			if !open || f.Kind == frame.Reply {
				t.Fatalf("%q never came: %q", what, seen.String())
			}
			seen.Write(f.Payload)
		}
	}
	until("24 80\r\n")
	c.must(object{"op": "resize", "id": id, "rows": 30, "cols": 100})
	in := c.open(object{"op": "stdin", "id": id, "offset": 0}, nil)
	in.event()
	in.data([]byte("word\n"))
	until("30 100\r\n")
	until("got word\r\n")
	in.end()
	until("eof\r\n")
	c.must(object{"op": "wait", "id": id}).ended(t, 0)
	if r := out.result(); r.ok == nil {
		t.Errorf("the output has no end: %v", r.fault)
	}
	plain := c.exec(nil, "sleep", "1")
	c.do(object{"op": "resize", "id": plain, "rows": 1, "cols": 1}).want(t, "failed_precondition", "")
}

func TestMergedErrorsAndPs(t *testing.T) {
	c := start(t).dial()
	id := c.exec(object{"merge_stderr": true}, sh("echo a; echo b >&2; exit 4")...)
	if r := c.must(object{"op": "output", "id": id, "fd": 1, "offset": 0}); string(r.out) != "a\nb\n" {
		t.Errorf("got %q", r.out)
	}
	if r := c.must(object{"op": "output", "id": id, "fd": 2, "offset": 0}); len(r.out) != 0 {
		t.Errorf("got %q", r.out)
	}
	c.must(object{"op": "wait", "id": id})
	rows := c.must(object{"op": "ps"}).ok["processes"].([]any)
	row := rows[len(rows)-1].(object)
	if row["id"] != id || row["running"] != false || row["exit"] != float64(4) || row["argv"].([]any)[0] != "sh" {
		t.Errorf("got %v", row)
	}
}

// SHOAL_SOAK_RUNS sets how many they are.
func TestSoakOfRunsLeavesNothing(t *testing.T) {
	n := start(t)
	c := n.dial()
	pid := n.agentPid()
	descriptors := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	round := func(count int) {
		var callers sync.WaitGroup
		for range 8 {
			callers.Go(func() {
				for range count / 8 {
					if r := c.run(nil, "true"); r.ok == nil {
						t.Errorf("%v", r.fault)
					}
				}
			})
		}
		callers.Wait()
	}
	round(400)
	before, memory := descriptors(), resident(t, pid)
	runs := 1200
	if text := os.Getenv("SHOAL_SOAK_RUNS"); text != "" {
		var err error
		if runs, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	round(runs)
	eventually(t, "the descriptors are given back", func() bool { return descriptors() <= before })
	if grown := resident(t, pid) - memory; grown > 4<<20 {
		t.Errorf("memory grew by %d", grown)
	}
	t.Logf("after %d runs: %d bytes resident (%d before), %d descriptors", runs, resident(t, pid), memory, descriptors())
}

func resident(t testing.TB, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmRSS:" {
			n, _ := strconv.Atoi(fields[1])
			return n << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}
