package files

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"shoal/agent/internal/frame"
	"shoal/agent/internal/mux"
	"shoal/agent/internal/users"
)

// client speaks the frame protocol with an agent that knows only the requests of package files.
type client struct {
	t    *testing.T
	conn net.Conn
	dec  *frame.Decoder
	next uint32
	// credit is the remaining credit of the stream that put uses.
	credit int
}

func connect(t *testing.T) *client {
	t.Helper()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := connOf(t, pair[0]), connOf(t, pair[1])
	handlers := Handlers(userOf)
	served := make(chan struct{})
	go func() {
		defer close(served)
		mux.New(theirs, frame.NewDecoder(theirs)).Serve(func(st *mux.Stream, raw []byte) {
			var request struct{ Op string }
			if err := json.Unmarshal(raw, &request); err != nil {
				panic(err)
			}
			if err := handlers[request.Op](st, raw); err != nil {
				st.Fail(err)
			}
		})
	}()
	t.Cleanup(func() {
		ours.Close()
		<-served
	})
	ours.SetDeadline(time.Now().Add(60 * time.Second))
	return &client{t: t, conn: ours, dec: frame.NewDecoder(ours)}
}

func connOf(t *testing.T, fd int) net.Conn {
	t.Helper()
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// userOf takes "", or a number that is the user's id, its group, and ten times that its only other group.
func userOf(user string) (*users.User, error) {
	if user == "" {
		return own, nil
	}
	id, err := strconv.ParseUint(user, 10, 32)
	return &users.User{UID: uint32(id), GID: uint32(id), Groups: []uint32{uint32(id), 10 * uint32(id)}}, err
}

type object = map[string]any

func (c *client) send(kind frame.Kind, stream uint32, payload []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(frame.Append(nil, kind, stream, payload)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) open(request object) uint32 {
	c.t.Helper()
	c.next++
	raw, err := json.Marshal(request)
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(frame.Open, c.next, raw)
	return c.next
}

// answer is everything that came for a stream. code and field belong to an error.
type answer struct {
	ok          object
	code, field string
	message     string
	data        []byte
	events      []object
}

// receive takes frames until done returns true, and gives credit for data.
func (c *client) receive(a *answer, done func() bool) {
	c.t.Helper()
	for !done() {
		f, err := c.dec.Next()
		if err != nil {
			c.t.Fatalf("connection: %v", err)
		}
		switch f.Kind {
		case frame.Data:
			a.data = append(a.data, f.Payload...)
			c.conn.Write(frame.AppendCredit(nil, f.Stream, uint32(len(f.Payload))))
		case frame.Event:
			event := object{}
			if err := json.Unmarshal(f.Payload, &event); err != nil {
				c.t.Fatal(err)
			}
			a.events = append(a.events, event)
		case frame.Reply:
			var reply struct {
				OK    object
				Error *struct{ Code, Field, Message string }
			}
			if err := json.Unmarshal(f.Payload, &reply); err != nil {
				c.t.Fatal(err)
			}
			a.ok = reply.OK
			if e := reply.Error; e != nil {
				a.code, a.field, a.message = e.Code, e.Field, e.Message
			}
		case frame.Credit:
			n, err := frame.ParseCredit(f.Payload)
			if err != nil {
				c.t.Fatal(err)
			}
			c.credit += int(n)
		default:
			c.t.Fatalf("kind %d", f.Kind)
		}
		if f.Owned {
			frame.Recycle(f.Payload)
		}
	}
}

func (a *answer) ended() bool { return a.ok != nil || a.code != "" }

func (c *client) call(request object) *answer {
	c.t.Helper()
	c.open(request)
	a := &answer{}
	c.receive(a, a.ended)
	return a
}

// put sends data as the credit allows, and then END. It stops if the answer comes first.
func (c *client) put(request object, data []byte) *answer {
	c.t.Helper()
	id := c.open(request)
	a := &answer{}
	c.credit = frame.InitialCredit
	for len(data) > 0 {
		n := min(len(data), 100_000)
		c.receive(a, func() bool { return c.credit >= n || a.ended() })
		if a.ended() {
			return a
		}
		c.send(frame.Data, id, data[:n])
		c.credit -= n
		data = data[n:]
	}
	c.send(frame.End, id, nil)
	c.receive(a, a.ended)
	return a
}

func (a *answer) mustFail(t *testing.T, code, field string) {
	t.Helper()
	if a.code != code || a.field != field {
		t.Fatalf("got %q of %q (%s; ok %v), want %q of %q", a.code, a.field, a.message, a.ok, code, field)
	}
}

func (a *answer) mustSucceed(t *testing.T) *answer {
	t.Helper()
	if a.ok == nil {
		t.Fatalf("%s of %q: %s", a.code, a.field, a.message)
	}
	return a
}

func writeFile(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, path, content string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != content {
		t.Fatalf("%s holds %.100q (%v), want %.100q", path, got, err, content)
	}
}

func mustNames(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, entry := range entries {
		got = append(got, entry.Name())
	}
	if len(got) != len(names) {
		t.Fatalf("%s holds %q, want %q", dir, got, names)
	}
	for i := range got {
		if got[i] != names[i] {
			t.Fatalf("%s holds %q, want %q", dir, got, names)
		}
	}
}

// eventually waits until a condition holds. It is for frames without an answer, which another goroutine handles.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}
