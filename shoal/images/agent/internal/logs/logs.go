// Package logs says how the program writes its log: lines of text, or one JSON object a line with the members that the
// cluster's other processes write (shoal.model.logs).
package logs

import (
	"io"
	"log"
	"log/slog"
	"os"
	"strings"
)

// Use has all that the package log is given written to stderr in the format: `json`, or else text.
func Use(format, component string) { use(os.Stderr, format, component) }

func use(w io.Writer, format, component string) {
	if format != "json" {
		return
	}
	handler := slog.NewJSONHandler(w, &slog.HandlerOptions{ReplaceAttr: rename})
	logger := slog.New(handler).With("logger", "shoal."+component, "component", component)
	slog.SetLogLoggerLevel(slog.LevelWarn) // what the program logs is what went wrong
	slog.SetDefault(logger)
	log.SetFlags(0)
}

func rename(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return a
	}
	switch a.Key {
	case slog.TimeKey:
		return slog.String(slog.TimeKey, a.Value.Time().UTC().Format("2006-01-02T15:04:05.000-07:00"))
	case slog.MessageKey:
		a.Key = "message"
	case slog.LevelKey:
		level := strings.ToLower(a.Value.String())
		if level == "warn" {
			level = "warning"
		}
		return slog.String(slog.LevelKey, level)
	}
	return a
}
