package spans

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	maxWaiting = 4096 // spans that wait to be sent; what comes beyond that is dropped
	maxBatch   = 512
	batchTime  = time.Second
	attempts   = 3
	postTime   = 10 * time.Second

	kindServer  = 2
	statusError = 2
)

// endedSpan is a span as OTLP writes it in JSON.
type endedSpan struct {
	TraceID      string      `json:"traceId"`
	SpanID       string      `json:"spanId"`
	ParentSpanID string      `json:"parentSpanId,omitempty"`
	Name         string      `json:"name"`
	Kind         int         `json:"kind"`
	Start        string      `json:"startTimeUnixNano"`
	End          string      `json:"endTimeUnixNano"`
	Attributes   []attribute `json:"attributes,omitempty"`
	Status       struct {
		Code int `json:"code,omitempty"`
	} `json:"status"`
}

type attribute struct {
	Key   string            `json:"key"`
	Value map[string]string `json:"value"`
}

func attributes(pairs []string) []attribute {
	var found []attribute
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			found = append(found, attribute{pairs[i], map[string]string{"stringValue": pairs[i+1]}})
		}
	}
	return found
}

// Tracer makes spans and sends them in batches. A nil one makes none.
type Tracer struct {
	config  Config
	client  http.Client
	waiting chan endedSpan
	ending  chan struct{}
	ended   chan struct{}
}

// New starts a tracer; nil if the configuration names no receiver.
func New(config Config) *Tracer {
	if config.Endpoint == "" {
		return nil
	}
	t := &Tracer{
		config: config, client: http.Client{Timeout: postTime},
		waiting: make(chan endedSpan, maxWaiting), ending: make(chan struct{}), ended: make(chan struct{}),
	}
	t.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	go t.run()
	return t
}

// Close sends what has ended, within the time. It is called once, after the last span has ended.
func (t *Tracer) Close(within time.Duration) {
	if t == nil {
		return
	}
	close(t.ending)
	select {
	case <-t.ended:
	case <-time.After(within):
	}
}

func (t *Tracer) add(span endedSpan) {
	select {
	case t.waiting <- span:
	default: // the receiver is away, or too slow: requests do not wait for it
	}
}

func (t *Tracer) run() {
	defer close(t.ended)
	for ending := false; !ending; {
		select {
		case <-t.ending:
			ending = true
		case <-time.After(batchTime):
		}
		for len(t.waiting) > 0 {
			batch := make([]endedSpan, 0, maxBatch)
			for len(batch) < maxBatch && len(t.waiting) > 0 {
				batch = append(batch, <-t.waiting)
			}
			t.send(batch)
		}
	}
}

// send tries a few times. A batch that the receiver does not take is dropped.
func (t *Tracer) send(batch []endedSpan) {
	var resource []string
	for name, value := range t.config.Resource {
		resource = append(resource, name, value)
	}
	body, err := json.Marshal(map[string]any{"resourceSpans": []any{map[string]any{
		"resource":   map[string]any{"attributes": attributes(resource)},
		"scopeSpans": []any{map[string]any{"scope": map[string]string{"name": "shoal"}, "spans": batch}},
	}}})
	again := err == nil
	for try := 0; again && try < attempts; try++ {
		if try > 0 {
			time.Sleep(time.Second << (try - 1))
		}
		if again, err = t.post(body); err == nil {
			return
		}
	}
	log.Printf("traces: %d spans are dropped, as the receiver does not take them: %v", len(batch), err)
}

// post sends a body once. It reports whether another attempt may help.
func (t *Tracer) post(body []byte) (again bool, err error) {
	url := strings.TrimRight(t.config.Endpoint, "/") + "/v1/traces"
	request, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	for name, value := range readHeaders(t.config.Headers) {
		request.Header.Set(name, value)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := t.client.Do(request)
	if err != nil {
		return true, err
	}
	defer response.Body.Close()
	io.Copy(io.Discard, io.LimitReader(response.Body, 1<<16))
	if response.StatusCode/100 != 2 {
		again = response.StatusCode == http.StatusTooManyRequests || response.StatusCode >= 500
		return again, fmt.Errorf("it answers with %d", response.StatusCode)
	}
	return false, nil
}

// readHeaders reads the file each time: a token in it may be renewed.
func readHeaders(path string) map[string]string {
	headers := map[string]string{}
	if path == "" {
		return headers
	}
	text, err := os.ReadFile(path)
	if err != nil {
		log.Printf("traces: the file of headers: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		if name, value, found := strings.Cut(line, ":"); found {
			headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return headers
}
