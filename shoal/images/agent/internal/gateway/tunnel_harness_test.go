package gateway

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
	"shoal/agent/internal/token"
)

const (
	sandboxID   = "sb-1"
	sandboxPort = 8080
	apiToken    = "shoal_tk-0123456789abcdef_0123456789abcdef0123456789abcdef0Aa1Zz"
)

var prefix = fmt.Sprintf("/t/%s/%d", sandboxID, sandboxPort)

// tunnelHarness is a harness with a replica that answers lookups of tunnels, and a relay to the servers of the test.
type tunnelHarness struct {
	*harness
	secret     []byte
	relay      net.Listener
	apiHandler http.HandlerFunc // the API

	mu      sync.Mutex
	open    map[int]bool   // the sandbox's http tunnels: port → public
	servers map[int]string // the servers in the sandbox: port → address
	ended   bool
	revoked bool
	asleep  bool // until a lookup wakes it
	woken   int
	lookups int
	dialled int
}

func newTunnelHarness(t testing.TB, change func(*Config)) *tunnelHarness {
	t.Helper()
	l := &tunnelHarness{harness: startHarness(t, change), secret: make([]byte, 32),
		open: map[int]bool{sandboxPort: false}, servers: map[int]string{}, apiHandler: respondWith("the API")}
	var err error
	if l.relay, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.relay.Close() })
	go l.acceptClients()
	l.harness.replica("r1", func(w http.ResponseWriter, r *http.Request) { l.apiHandler(w, r) }, l.serveInternal)
	time.Sleep(2 * scanInterval)
	return l
}

func (l *tunnelHarness) locked(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

// serveInternal answers the gateway's own requests.
func (l *tunnelHarness) serveInternal(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/tunnel-secret" {
		json.NewEncoder(w).Encode(map[string]string{"secret": hex.EncodeToString(l.secret)})
		return
	}
	var asked struct {
		Sandbox  string  `json:"sandbox"`
		Port     int     `json:"port"`
		APIToken *string `json:"api_token"`
		Wake     bool    `json:"wake"`
	}
	json.NewDecoder(r.Body).Decode(&asked)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lookups++
	public, open := l.open[asked.Port]
	open = open && asked.Sandbox == sandboxID && !l.ended
	answer := map[string]any{"open": open, "public": public && open, "admitted": nil, "refusal": nil}
	refuse := func(status int, code string) {
		answer["refusal"] = map[string]any{"status": status, "code": code, "detail": "no", "retryable": false,
			"request_id": "x"}
	}
	switch {
	case asked.APIToken != nil && (*asked.APIToken != apiToken || l.revoked || asked.Sandbox != sandboxID):
		answer["admitted"] = false
		refuse(401, "unauthenticated")
	case asked.APIToken != nil:
		answer["admitted"] = true
	}
	if answer["refusal"] == nil && l.ended {
		refuse(410, "sandbox_ended")
	} else if answer["refusal"] == nil && !open {
		refuse(404, "tunnel_not_found")
	}
	if open && l.asleep && asked.Wake {
		l.woken++
		l.mu.Unlock()
		time.Sleep(50 * time.Millisecond)
		l.mu.Lock()
		l.asleep = false
	}
	if answer["asleep"] = open && l.asleep; open && !l.asleep {
		answer["relay"], answer["grant"] = l.relay.Addr().String(), "grant-"+strconv.Itoa(asked.Port)
	}
	json.NewEncoder(w).Encode(answer)
}

// acceptClients plays both the relay and the sandbox's agent.
func (l *tunnelHarness) acceptClients() {
	for {
		conn, err := l.relay.Accept()
		if err != nil {
			return
		}
		go l.relayTo(conn.(*net.TCPConn))
	}
}

func (l *tunnelHarness) relayTo(client *net.TCPConn) {
	defer client.Close()
	decoder := frame.NewDecoder(client)
	f, err := decoder.Next()
	var hello struct {
		Token string `json:"token"`
		Dial  int    `json:"dial"`
	}
	if err != nil || json.Unmarshal(f.Payload, &hello) != nil || hello.Token != "grant-"+strconv.Itoa(hello.Dial) {
		return
	}
	say := func(f *fault.Fault) {
		payload, _ := json.Marshal(map[string]any{"v": 1, "ok": f == nil, "error": f})
		client.Write(frame.Append(nil, frame.Hello, 0, payload))
	}
	say(nil)
	l.mu.Lock()
	l.dialled++
	address := l.servers[hello.Dial]
	l.mu.Unlock()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		say(fault.New(fault.Unavailable, "nothing listens"))
		return
	}
	defer conn.Close()
	say(nil)
	server := conn.(*net.TCPConn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := io.Copy(server, client); err != nil {
			server.Close()
			return
		}
		server.CloseWrite()
	}()
	if _, err := io.Copy(client, server); err == nil {
		client.CloseWrite()
	} else {
		client.Close()
	}
	<-done
}

// web starts a web server on sandboxPort.
func (l *tunnelHarness) web(handler http.HandlerFunc) {
	l.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go server.Serve(listener)
	l.t.Cleanup(func() { server.Close() })
	l.locked(func() { l.servers[sandboxPort] = listener.Addr().String() })
}

// serveRaw starts a server on sandboxPort that calls serve once the headers of a request have arrived.
func (l *tunnelHarness) serveRaw(serve func(conn net.Conn, head string)) {
	l.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				head := make([]byte, 64<<10)
				n := 0
				for {
					m, err := conn.Read(head[n:])
					n += m
					if err != nil {
						return
					}
					if i := indexEnd(head[:n]); i >= 0 {
						serve(conn, string(head[:i]))
						return
					}
				}
			}()
		}
	}()
	l.locked(func() { l.servers[sandboxPort] = listener.Addr().String() })
}

func indexEnd(head []byte) int {
	for i := 0; i+4 <= len(head); i++ {
		if string(head[i:i+4]) == "\r\n\r\n" {
			return i + 4
		}
	}
	return -1
}

// connectToken returns a connect token, signed as the controller does.
func (l *tunnelHarness) connectToken(sandbox string, port int, lasts time.Duration) string {
	payload, _ := json.Marshal(map[string]any{
		"sandbox": sandbox, "key": token.ConnectKey, "scopes": []string{token.ScopeTunnel},
		"exp": time.Now().Add(lasts).Unix(), "port": port,
	})
	mac := hmac.New(sha256.New, l.secret)
	mac.Write(payload)
	return base64.RawURLEncoding.EncodeToString(payload) + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// tokenHeader returns the header that opens the private tunnel.
func (l *tunnelHarness) tokenHeader() map[string]string {
	return map[string]string{connectHeader: l.connectToken(sandboxID, sandboxPort, time.Minute)}
}

func withHeaders(headers map[string]string, more ...string) map[string]string {
	all := map[string]string{}
	for name, value := range headers {
		all[name] = value
	}
	for i := 0; i+1 < len(more); i += 2 {
		all[more[i]] = more[i+1]
	}
	return all
}
