package server

import (
	"encoding/json"
	"errors"
	"testing"

	"shoal/agent/internal/fault"
)

func TestOpIsFoundWhereverItIs(t *testing.T) {
	for raw, want := range map[string]string{
		`{"op":"run","id":"p-a"}`: "run", `{"op": "ps"}`: "ps", `{"id":"p-a","op":"wait"}`: "wait", `{}`: "", `{"op":"\u0070s"}`: "ps",
	} {
		if got, err := opOf([]byte(raw)); err != nil || got != want {
			t.Errorf("%s: %q, %v", raw, got, err)
		}
	}
	for _, raw := range []string{`{`, "", "{\"op\":\"\xff\"}", `nonsense`} {
		if _, err := opOf([]byte(raw)); !errors.Is(err, errGrammar) {
			t.Errorf("%q: %v", raw, err)
		}
	}
	if _, err := opOf([]byte(`["run"]`)); errors.Is(err, errGrammar) || err == nil {
		t.Errorf("valid JSON that is no request: %v", err)
	}
}

func TestRequestsAreReadStrictly(t *testing.T) {
	for raw, field := range map[string]string{
		`{"op":"wait","id":5}`:          "id",
		`{"op":"wait","id":"p","x":1}`:  "x",
		`{"op":"wait","id":["p"]}`:      "id",
		`["wait"]`:                      "request",
		`{"op":"wait","id":{"b64":""}}`: "id",
	} {
		_, err := decode[processRequest]([]byte(raw))
		var f *fault.Fault
		if !errors.As(err, &f) || f.Field != field {
			t.Errorf("%s: %v", raw, err)
		}
	}
	for _, raw := range []string{`{"op":"wait"`, `{"op":"wait"} {}`, `{"op":"wait"}x`, ``} {
		if _, err := decode[processRequest]([]byte(raw)); !errors.Is(err, errGrammar) {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

func TestTextThatIsNoUTF8(t *testing.T) {
	for _, s := range []string{"plain", "ü", "\xff\xfe", ""} {
		raw, err := json.Marshal(text(s))
		if err != nil {
			t.Fatal(err)
		}
		var back text
		if err := json.Unmarshal(raw, &back); err != nil || string(back) != s {
			t.Errorf("%q: %s, %q, %v", s, raw, back, err)
		}
	}
	for _, raw := range []string{`{"b64":"%"}`, `{"b65":""}`, `{}`, `5`} {
		if err := json.Unmarshal([]byte(raw), new(text)); err == nil {
			t.Errorf("%s was taken", raw)
		}
	}
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte(`{"op":"run","id":"p-a","argv":["a",{"b64":"/w=="}],"env":{"A":null},"workdir":null,"limits":{"core":0}}`))
	f.Add([]byte(`{"op":"exec","pty":{"rows":1,"cols":2}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		op, err := opOf(raw)
		if err != nil {
			return
		}
		request, err := decode[runRequest](raw)
		if err == nil {
			request.spec()
			if !json.Valid(raw) {
				t.Fatalf("%s (%q) is no JSON", raw, op)
			}
		}
	})
}
