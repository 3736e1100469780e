package boot

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWhatIsNoFilterEndsTheAgent(t *testing.T) {
	if err := confine(); err != nil {
		t.Errorf("without one: %v", err)
	}
	for _, content := range [][]byte{nil, make([]byte, 7), make([]byte, instructionSize*(mostInstructions+1))} {
		path := filepath.Join(t.TempDir(), "filter")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		args := os.Args
		os.Args = []string{"agent", "init"}
		t.Setenv(filterVariable, path)
		if confine() == nil {
			t.Errorf("%d bytes were taken", len(content))
		}
		t.Setenv(filterVariable, path+"-not-there")
		if confine() == nil {
			t.Error("a file that is not there was taken")
		}
		os.Args = args
	}
}
