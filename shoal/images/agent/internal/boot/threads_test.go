package boot

import (
	"os"
	"testing"
)

func TestReservedThreadsStay(t *testing.T) {
	const more = 20
	before := threads(t)
	reserveThreads(before + more)
	if now := threads(t); now < before+more {
		t.Fatalf("%d threads before, %d after reserving %d", before, now, before+more)
	}
}

func threads(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(tasks)
}
