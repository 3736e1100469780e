package boot

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestWhatTheEngineTellsIsTakenOutOfTheEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"SHOAL_USER": "ann", "SHOAL_WORKDIR": "/work", "SHOAL_SOCKET": "/s", "SHOAL_ORPHAN_S": "1.5", "SHOAL_DEADLINE_S": "9",
		"SHOAL_OTHER": "x", "KEPT": "kept",
	} {
		t.Setenv(name, value)
	}
	p, err := readPost()
	if err != nil {
		t.Fatal(err)
	}
	if p.socket != "/s" || p.orphan != 1500*time.Millisecond || p.deadline != 9*time.Second {
		t.Errorf("%+v", p)
	}
	if p.defaults.User != "ann" || p.defaults.Workdir != "/work" || !slices.Contains(p.defaults.Env, "KEPT=kept") {
		t.Errorf("%+v", p.defaults)
	}
	for _, entry := range append(os.Environ(), p.defaults.Env...) {
		if strings.HasPrefix(entry, "SHOAL_") {
			t.Errorf("%s is still there", entry)
		}
	}
	again, err := readPost()
	if err != nil || again.socket != defaultSocket || again.orphan != defaultOrphan || again.deadline != 0 {
		t.Errorf("without: %+v, %v", again, err)
	}
}

func TestNonsenseFromTheEngineIsRefused(t *testing.T) {
	for _, text := range []string{"x", "-1", "0", "NaN", "1e300"} {
		t.Setenv("SHOAL_ORPHAN_S", text)
		if _, err := readPost(); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
