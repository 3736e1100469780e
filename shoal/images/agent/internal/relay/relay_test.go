package relay

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"shoal/agent/internal/token"
)

func TestTheRelayNeverListensOnAllAddresses(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", "[::]:0", ":0", "localhost:0", "nonsense"} {
		line, _ := json.Marshal(map[string]any{
			"root": "/r", "listen": listen, "secret": strings.Repeat("ab", 32), "control": "/c", "idle_exit_s": 1,
		})
		if _, err := ReadConfig(bytes.NewReader(append(line, '\n'))); err == nil {
			t.Errorf("%s was accepted", listen)
		}
	}
}

// inContainer opens a container in a new directory, with the secret where the agent finds it.
func inContainer(t *testing.T) *container {
	t.Helper()
	root, secret := t.TempDir(), bytes.Repeat([]byte{7}, token.AgentSecretSize)
	if err := os.Mkdir(filepath.Join(root, "c-a"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "c-a", secretName), secret, 0o444); err != nil {
		t.Fatal(err)
	}
	c, err := openContainer(root, "c-a", secret)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

// call dials the container's socket and shows a secret.
func call(t *testing.T, c *container, shown []byte) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(c.directory, socketName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.Write(shown) // which fails if it is refused first
	return conn
}

func TestOnlyWhoShowsTheSecretMayPark(t *testing.T) {
	c := inContainer(t)
	for _, shown := range [][]byte{{}, bytes.Repeat([]byte{8}, token.AgentSecretSize), []byte("short")} {
		conn := call(t, c, shown)
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
			t.Fatalf("an impostor with %q was let in: %d, %v", shown, n, err)
		}
		if _, err := c.take(10 * time.Millisecond); err == nil {
			t.Fatalf("an impostor with %q was parked", shown)
		}
	}
	call(t, c, c.secret)
	if _, err := c.take(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(c.directory, secretName)); !os.IsNotExist(err) {
		t.Fatalf("the secret can still be read: %v", err)
	}
}

func TestOnlyTheFirstProcessMayParkOnceItIsKnown(t *testing.T) {
	c := inContainer(t)
	self, err := processOf(os.Getpid())
	if err != nil || self.started == 0 {
		t.Fatalf("%v, %v", self, err)
	}
	call(t, c, c.secret) // it parks, and is turned away when its turn comes
	for _, other := range []process{{self.pid, self.started + 1}, {self.pid + 1, self.started}} {
		c.identify(other)
		call(t, c, c.secret)
		if _, err := c.take(50 * time.Millisecond); err == nil {
			t.Fatalf("%v parked in the place of %v", self, other)
		}
	}
	c.identify(self)
	call(t, c, c.secret)
	if _, err := c.take(20 * time.Second); err != nil {
		t.Fatal(err)
	}
}

func TestTheNameOfTheSocketSaysNothingOfTheNode(t *testing.T) {
	c := inContainer(t)
	if bound := c.listener.Addr().String(); strings.Contains(bound, c.directory) || strings.Contains(bound, c.key) {
		t.Fatalf("code inside reads %s in /proc/net/unix", bound)
	}
}

func TestARelayWithoutAControlConnectionEnds(t *testing.T) {
	dir := t.TempDir()
	config := Config{
		Root: filepath.Join(dir, "c"), Listen: "127.0.0.1:0", Secret: strings.Repeat("ab", 32),
		Control: filepath.Join(dir, "control"), IdleExitS: 0.5,
	}
	if err := config.check(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- Run(context.Background(), config, "test", &bytes.Buffer{}) }()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it still runs")
	}
}

func FuzzHello(f *testing.F) {
	f.Add([]byte(`{"v":1,"token":"a.b","wait_ms":5}`))
	f.Add([]byte(`{"v":1,"token":"a.b","dial":80}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if h, err := parseHello(payload); err == nil &&
			(h.WaitMs < 0 || h.Version != version || h.Dial < 0 || h.Dial > 65535) {
			t.Fatalf("accepted %q", payload)
		}
	})
}

func FuzzDialReply(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x14\x00\x00\x00\x00\x00" + `{"v":1,"ok":true}` + "raw"))
	f.Add([]byte("\x00\x00\x00\x05\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, said []byte) {
		ahead, err := readDialReply(bytes.NewReader(said))
		if err == nil && !bytes.HasSuffix(said, ahead) {
			t.Fatalf("%q: ahead is %q", said, ahead)
		}
	})
}

func FuzzTokenLine(f *testing.F) {
	f.Add([]byte("a.b\nraw"), 1)
	f.Add([]byte("\r\n"), 4)
	f.Fuzz(func(t *testing.T, said []byte, step int) {
		line, ahead, err := readLine(&shortReader{said, max(step, 1)})
		if err != nil {
			return
		}
		if len(line) > maxTokenLine || bytes.ContainsRune(line, '\n') || !bytes.HasPrefix(said, line) {
			t.Fatalf("%q: the line is %q", said, line)
		}
		if !bytes.Contains(said, append([]byte{'\n'}, ahead...)) {
			t.Fatalf("%q: ahead is %q", said, ahead)
		}
		if checkToken(line, bytes.Repeat([]byte{1}, 32), "c-a", 80, time.Now()) == nil {
			t.Fatalf("%q was let in", line)
		}
	})
}

// shortReader returns at most step bytes per Read.
type shortReader struct {
	rest []byte
	step int
}

func (s *shortReader) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.step)], s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
