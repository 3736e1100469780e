package boot

import (
	"runtime"
	"sync"
)

// spareThreads is how many threads the agent starts in advance. It runs Go code on one; others wait in system calls, of
// which a few last at the same time: reading a file, looking through /proc, starting a process.
const spareThreads = 6

// reserveThreads has the runtime start n threads, which it keeps and uses again. Code inside may start processes up to
// the sandbox's limit. The runtime then gets no new thread, and where it needs one it ends the program.
func reserveThreads(n int) {
	var started sync.WaitGroup
	done := make(chan struct{})
	started.Add(n)
	for range n {
		go func() {
			runtime.LockOSThread() // a thread of its own for each, as all wait at the same time
			defer runtime.UnlockOSThread()
			started.Done()
			<-done
		}()
	}
	started.Wait()
	close(done)
}
