package logs

import (
	"bytes"
	"encoding/json"
	"log"
	"log/slog"
	"os"
	"testing"
)

func TestLinesAreObjects(t *testing.T) {
	before := slog.Default()
	t.Cleanup(func() {
		slog.SetDefault(before)
		log.SetOutput(os.Stderr)
	})
	var out bytes.Buffer
	use(&out, "json", "relay")
	log.Printf("relay: %s: %v", "c-1", "refused\n\x1b[31m")
	var line map[string]string
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%q: %v", out.String(), err)
	}
	want := map[string]string{
		"level": "warning", "logger": "shoal.relay", "component": "relay", "message": "relay: c-1: refused\n\x1b[31m",
	}
	for name, value := range want {
		if line[name] != value {
			t.Errorf("%s is %q, not %q", name, line[name], value)
		}
	}
	if len(line["time"]) != len("2006-01-02T15:04:05.000+00:00") {
		t.Errorf("time is %q", line["time"])
	}
}
