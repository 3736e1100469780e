package e2e

import (
	"encoding/json"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"shoal/agent/internal/frame"
)

// BenchmarkRun is one caller's `true`, through relay and agent.
func BenchmarkRun(b *testing.B) {
	c := start(b).dial()
	c.run(nil, "true").ended(b, 0)
	times := make([]time.Duration, 0, b.N)
	b.ResetTimer()
	for range b.N {
		began := time.Now()
		c.run(nil, "/bin/true").ended(b, 0)
		times = append(times, time.Since(began))
	}
	b.StopTimer()
	report(b, times)
}

// BenchmarkRun16 is 16 callers' on one connection.
func BenchmarkRun16(b *testing.B) {
	c := start(b).dial()
	c.run(nil, "true").ended(b, 0)
	b.ResetTimer()
	began := time.Now()
	var callers sync.WaitGroup
	for caller := range 16 {
		callers.Go(func() {
			for range (b.N + 15 - caller) / 16 {
				c.run(nil, "/bin/true")
			}
		})
	}
	callers.Wait()
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "runs/s")
}

func report(b *testing.B, times []time.Duration) {
	sorted := slices.Sorted(slices.Values(times))
	at := func(q float64) float64 { return sorted[int(q*float64(len(sorted)-1))].Seconds() * 1000 }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.95), "p95-ms")
	b.ReportMetric(at(0.99), "p99-ms")
}

// BenchmarkForkExec is what the machine itself takes for the same.
func BenchmarkForkExec(b *testing.B) {
	times := make([]time.Duration, 0, b.N)
	for range b.N {
		began := time.Now()
		pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{Env: os.Environ()})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(began))
	}
	report(b, times)
}

const fileSize = 10 << 20

// BenchmarkRead and BenchmarkWrite move 10 MiB.
func BenchmarkRead(b *testing.B) {
	c := start(b).dial()
	path := b.TempDir() + "/file"
	if err := os.WriteFile(path, make([]byte, fileSize), 0o644); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(fileSize)
	for b.Loop() {
		request, _ := json.Marshal(object{"op": "read", "path": path, "offset": 0, "length": -1})
		k := c.openRaw(request, nil, true)
		k.credit(fileSize)
		n := 0
		for {
			f, _ := k.next()
			if f.Kind == frame.Reply {
				break
			}
			n += len(f.Payload)
			if f.Owned {
				frame.Recycle(f.Payload)
			}
		}
		if n != fileSize {
			b.Fatal(n)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	c := start(b).dial()
	path := b.TempDir() + "/file"
	piece := make([]byte, 256<<10)
	b.SetBytes(fileSize)
	for b.Loop() {
		k := c.open(object{"op": "write", "path": path}, nil)
		credit := 1 << 20
		for sent := 0; sent < fileSize; {
			for credit < len(piece) {
				f, open := k.next()
				if !open || f.Kind != frame.Credit {
					b.Fatalf("kind %d: %s", f.Kind, f.Payload)
				}
				n, _ := frame.ParseCredit(f.Payload)
				credit += int(n)
			}
			k.data(piece)
			credit -= len(piece)
			sent += len(piece)
		}
		k.end()
		if r := k.result(); r.ok["size"] != float64(fileSize) {
			b.Fatal(r.fault)
		}
	}
}
