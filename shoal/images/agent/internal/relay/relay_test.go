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

func TestOnlyTheFirstProcessOfAContainerMayPark(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "c-a"), 0o755); err != nil {
		t.Fatal(err)
	}
	c, err := openContainer(root, "c-a")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	// Like code in a container, this test is not pid 1 of a namespace.
	conn, err := net.Dial("unix", filepath.Join(root, "c-a", socketName))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
		t.Fatalf("an impostor was let in: %d, %v", n, err)
	}
	if _, err := c.take(50 * time.Millisecond); err == nil {
		t.Fatal("an impostor was parked")
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
