package e2e

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net"
	"sync"
	"testing"
	"time"

	"shoal/agent/internal/frame"
)

// object is JSON.
type object = map[string]any

func tokenFor(scopes ...string) string {
	return signed(object{"sandbox": "sb-test", "key": key, "scopes": scopes, "exp": time.Now().Add(time.Hour).Unix()})
}

// signed is a token that says so.
func signed(claims object) string {
	payload, _ := json.Marshal(claims)
	mac := hmac.New(sha256.New, secret)
	mac.Write(payload)
	encode := base64.RawURLEncoding.EncodeToString
	return encode(payload) + "." + encode(mac.Sum(nil))
}

// client is a small client of the protocol.
type client struct {
	t    testing.TB
	conn net.Conn

	mu    sync.Mutex
	last  uint32
	calls map[uint32]*call
	err   error
}

// call is one stream: what came for it goes to frames, which is closed at its end.
type call struct {
	c      *client
	id     uint32
	frames chan frame.Frame
	// hold: no credit is given.
	hold bool
}

// result is what a call brought.
type result struct {
	out, err []byte
	events   []object
	ok       object
	fault    object
	lost     bool
}

func (n *node) dial(scopes ...string) *client {
	n.t.Helper()
	if scopes == nil {
		scopes = []string{"exec", "files", "admin"}
	}
	conn := n.connect()
	hello, _ := json.Marshal(object{"v": 1, "token": tokenFor(scopes...), "wait_ms": 10_000})
	if _, err := conn.Write(frame.Append(nil, frame.Hello, 0, hello)); err != nil {
		n.t.Fatal(err)
	}
	decoder := frame.NewDecoder(conn)
	f, err := decoder.Next()
	if err != nil || f.Kind != frame.Hello {
		n.t.Fatalf("no HELLO: %v", err)
	}
	var answer object
	if json.Unmarshal(f.Payload, &answer); answer["ok"] != true {
		n.t.Fatalf("not admitted: %s", f.Payload)
	}
	c := &client{t: n.t, conn: conn, calls: make(map[uint32]*call)}
	go c.read(decoder)
	n.t.Cleanup(func() { conn.Close() })
	return c
}

func (c *client) read(decoder *frame.Decoder) {
	for {
		f, err := decoder.Next()
		c.mu.Lock()
		if err != nil {
			c.err = err
			for _, waiting := range c.calls {
				close(waiting.frames)
			}
			c.calls = nil
			c.mu.Unlock()
			return
		}
		target := c.calls[f.Stream]
		if f.Kind == frame.Reply {
			delete(c.calls, f.Stream)
		}
		c.mu.Unlock()
		if target == nil {
			continue
		}
		if !f.Owned {
			f.Payload = append([]byte(nil), f.Payload...)
		}
		if (f.Kind == frame.Data || f.Kind == frame.ErrData) && !target.hold {
			c.write(frame.AppendCredit(nil, f.Stream, uint32(len(f.Payload))))
		}
		target.frames <- f
		if f.Kind == frame.Reply {
			close(target.frames)
		}
	}
}

func (c *client) write(b []byte) {
	if _, err := c.conn.Write(b); err != nil {
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
	}
}

// open sends a request, and with input (which may be nil for none) all its data.
func (c *client) open(request object, input []byte) *call {
	c.t.Helper()
	payload, err := json.Marshal(request)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.openRaw(payload, input, false)
}

func (c *client) openRaw(payload, input []byte, hold bool) *call {
	c.mu.Lock()
	c.last++
	k := &call{c: c, id: c.last, frames: make(chan frame.Frame, 1<<16), hold: hold}
	if c.calls == nil {
		close(k.frames)
	} else {
		c.calls[k.id] = k
	}
	c.mu.Unlock()
	b := frame.Append(nil, frame.Open, k.id, payload)
	if input != nil {
		b = frame.Append(b, frame.Data, k.id, input)
		b = frame.Append(b, frame.End, k.id, nil)
	}
	c.write(b)
	return k
}

func (k *call) data(p []byte) { k.c.write(frame.Append(nil, frame.Data, k.id, p)) }
func (k *call) end()          { k.c.write(frame.Append(nil, frame.End, k.id, nil)) }
func (k *call) cancel()       { k.c.write(frame.Append(nil, frame.Cancel, k.id, nil)) }
func (k *call) credit(n int)  { k.c.write(frame.AppendCredit(nil, k.id, uint32(n))) }

// next waits for one frame; false at the end of the stream.
func (k *call) next() (frame.Frame, bool) {
	k.c.t.Helper()
	select {
	case f, open := <-k.frames:
		return f, open
	case <-time.After(patient):
		k.c.t.Fatal("no answer")
		return frame.Frame{}, false
	}
}

// event waits for an EVENT.
func (k *call) event() object {
	k.c.t.Helper()
	f, open := k.next()
	var o object
	if !open || f.Kind != frame.Event || json.Unmarshal(f.Payload, &o) != nil {
		k.c.t.Fatalf("expected an EVENT, got kind %d: %s", f.Kind, f.Payload)
	}
	return o
}

// result reads the stream to its end.
func (k *call) result() *result {
	k.c.t.Helper()
	r := &result{}
	for {
		f, open := k.next()
		if !open {
			r.lost = true
			return r
		}
		switch f.Kind {
		case frame.Data:
			r.out = append(r.out, f.Payload...)
		case frame.ErrData:
			r.err = append(r.err, f.Payload...)
		case frame.Event:
			var o object
			json.Unmarshal(f.Payload, &o)
			r.events = append(r.events, o)
		case frame.Reply:
			var reply struct{ OK, Error object }
			if err := json.Unmarshal(f.Payload, &reply); err != nil {
				k.c.t.Fatal(err)
			}
			r.ok, r.fault = reply.OK, reply.Error
			return r
		}
	}
}

// do sends a request and reads its whole answer.
func (c *client) do(request object) *result {
	c.t.Helper()
	return c.open(request, nil).result()
}

// must is do where an error fails the test.
func (c *client) must(request object) *result {
	c.t.Helper()
	r := c.do(request)
	if r.ok == nil {
		c.t.Fatalf("%v: %v (lost: %v)", request["op"], r.fault, r.lost)
	}
	return r
}

// run runs a command; the members of more are added to the request.
func (c *client) run(more object, argv ...string) *result {
	c.t.Helper()
	return c.do(startOf("run", newID(), more, argv...))
}

// exec starts a command and returns its id.
func (c *client) exec(more object, argv ...string) string {
	c.t.Helper()
	id := newID()
	c.must(startOf("exec", id, more, argv...))
	return id
}

func startOf(op, id string, more object, argv ...string) object {
	request := object{"op": op, "id": id, "argv": argv}
	for name, value := range more {
		request[name] = value
	}
	return request
}

func sh(script string) []string { return []string{"sh", "-c", script} }

// want fails the test unless the call failed with the code and, where given, the field.
func (r *result) want(t testing.TB, code, field string) {
	t.Helper()
	if r.fault["code"] != code || field != "" && r.fault["field"] != field {
		t.Errorf("expected %s of %q, got fault %v, ok %v, lost %v", code, field, r.fault, r.ok, r.lost)
	}
}

// ended fails the test unless the command ended with the code.
func (r *result) ended(t testing.TB, code int) *result {
	t.Helper()
	if r.ok == nil || r.ok["exit"] != float64(code) {
		t.Fatalf("expected exit %d, got %v, fault %v, stderr %q", code, r.ok, r.fault, r.err)
	}
	return r
}
