package gateway

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"shoal/agent/internal/spans"
)

type spanSeen struct {
	TraceID, SpanID, ParentSpanID, Name, StartTimeUnixNano, EndTimeUnixNano string
	Attributes                                                              []struct {
		Key   string
		Value struct{ StringValue string }
	}
}

// startReceiver takes spans. It refuses the first batch.
func startReceiver(t *testing.T) (url string, spansSeen chan spanSeen) {
	seen := make(chan spanSeen, 100)
	first := true
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if first || r.URL.Path != "/v1/traces" {
			first = false
			w.WriteHeader(503)
			return
		}
		var sent struct {
			ResourceSpans []struct {
				ScopeSpans []struct{ Spans []spanSeen }
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&sent); err != nil {
			t.Error(err)
		}
		for _, span := range sent.ResourceSpans[0].ScopeSpans[0].Spans {
			seen <- span
		}
	}))
	t.Cleanup(server.Close)
	return server.URL, seen
}

func TestARequestsSpanIsBelowTheCallersAndAboveTheReplicas(t *testing.T) {
	url, seen := startReceiver(t)
	l := startHarness(t, func(c *Config) { c.Traces = spans.Config{Endpoint: url} })
	l.replica("r1", echoRequest, nil)
	trace, caller := strings.Repeat("a", 32), strings.Repeat("b", 16)
	for given, recorded := range map[string]bool{
		"00-" + trace + "-" + caller + "-00": false, // the caller's, as it is
		"nonsense":                           false, // as if there were none; the share is 0
		"00-" + trace + "-" + caller + "-03": true,
	} {
		passed := l.get("/v1/sandboxes", map[string]string{"traceparent": given, "X-Request-Id": "one"}).
			echoed(t).Headers["Traceparent"]
		parent, valid := spans.ParseParent(passed)
		if !valid || parent.Sampled() != recorded || strings.HasPrefix(given, "00") != strings.HasPrefix(passed, "00-"+trace) {
			t.Errorf("%q is passed on as %q", given, passed)
		}
		if !recorded {
			continue
		}
		select {
		case span := <-seen:
			expect(t, "span", []string{span.TraceID, span.ParentSpanID, span.Name}, []string{trace, caller, "GET"})
			expect(t, "passed on", passed, "00-"+trace+"-"+span.SpanID+"-03")
			attributes := map[string]string{}
			for _, each := range span.Attributes {
				attributes[each.Key] = each.Value.StringValue
			}
			expect(t, "attributes", attributes, map[string]string{
				"http.response.status_code": "200", "shoal.kind": "api", "shoal.request_id": "one",
			})
		case <-time.After(testTimeout):
			t.Fatal("no span came")
		}
	}
	expect(t, "more", len(seen), 0)
}

func TestATunnelsSpanNamesItsSandbox(t *testing.T) {
	url, seen := startReceiver(t)
	l := newTunnelHarness(t, func(c *Config) { c.Traces = spans.Config{Endpoint: url} })
	l.web(echoRequest)
	trace, caller := strings.Repeat("a", 32), strings.Repeat("b", 16)
	headers := withHeaders(l.tokenHeader(), "traceparent", "00-"+trace+"-"+caller+"-01", "X-Request-Id", "one")
	passed := l.get(prefix+"/", headers).echoed(t).Headers["Traceparent"]
	select {
	case span := <-seen:
		expect(t, "span", []string{span.TraceID, span.ParentSpanID}, []string{trace, caller})
		expect(t, "passed on", passed, "00-"+trace+"-"+span.SpanID+"-01")
		attributes := map[string]string{}
		for _, each := range span.Attributes {
			attributes[each.Key] = each.Value.StringValue
		}
		expect(t, "attributes", attributes, map[string]string{
			"http.response.status_code": "200", "shoal.kind": "tunnel", "shoal.request_id": "one", "shoal.sandbox_id": sandboxID,
		})
	case <-time.After(testTimeout):
		t.Fatal("no span came")
	}
	l.get(prefix+"/", l.tokenHeader())
	expect(t, "no trace begins at a tunnel whose share is 0", len(seen), 0)
}

func TestNoTraceBeginsWithWhatMachinesAsk(t *testing.T) {
	url, _ := startReceiver(t)
	l := startHarness(t, func(c *Config) { c.Traces = spans.Config{Endpoint: url, Share: 1} })
	l.replica("r1", echoRequest, nil)
	expect(t, "health", l.get("/v1/health", nil).echoed(t).Headers["Traceparent"], "")
	parent, valid := spans.ParseParent(l.get("/v1/sandboxes", nil).echoed(t).Headers["Traceparent"])
	expect(t, "another", []bool{valid, parent.Sampled()}, []bool{true, true})
}
