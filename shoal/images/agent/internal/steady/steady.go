// Package steady tells the time by a clock that nobody sets, for times that are kept as numbers.
package steady

import "time"

var start = time.Now()

// Now returns the time since the program began. The machine's clock may be set meanwhile.
func Now() time.Duration { return time.Since(start) }
