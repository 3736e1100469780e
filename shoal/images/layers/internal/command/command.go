// Package command holds the program's commands. Each reads its request, one line of JSON, from stdin.
package command

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"shoal/layers/internal/report"
	"shoal/layers/internal/unpack"
)

// requestLimit bounds a request: an image's configuration is the largest thing in one.
const requestLimit = 16 << 20

// defaultEntries are more than the largest images have (a million files).
const defaultEntries = 4 << 20

type job struct {
	request  json.RawMessage
	reporter *report.Reporter
}

// commands is all that there is.
var commands = map[string]func(job) (any, error){
	"unpack":   unpackArchive,
	"commit":   commitUpper,
	"export":   exportLayer,
	"inspect":  inspectImage,
	"fetch":    fetchLayer,
	"may-push": mayPush,
	"push":     pushImage,
}

// Run carries out a command and returns the exit code. It ends at once when the caller closes stdin, as its death does.
func Run(name string, in io.Reader, out io.Writer) int {
	reporter := report.New(out)
	run, known := commands[name]
	if !known {
		reporter.Error(report.Fail(report.Internal, "there is no command %q", name))
		return 2
	}
	decoder := json.NewDecoder(io.LimitReader(in, requestLimit))
	var request json.RawMessage
	if err := decoder.Decode(&request); err != nil {
		reporter.Error(report.Fail(report.Internal, "the request cannot be read: %v", err))
		return 2
	}
	go exitWith(in)
	result, err := run(job{request, reporter})
	if err != nil {
		reporter.Error(err)
		return 1
	}
	reporter.Result(result)
	return 0
}

// exitWith ends the program with its caller. Nothing is tidied up, as at a signal: the store's next opening does that.
func exitWith(in io.Reader) {
	_, _ = io.Copy(io.Discard, in)
	os.Exit(130)
}

// read fills in the request. A field that is not known is a mistake of the caller's.
func (j job) read(request any) error {
	if err := json.Unmarshal(j.request, request); err != nil {
		return fmt.Errorf("the request cannot be read: %w", err)
	}
	return nil
}

func boundsOr(bounds unpack.Bounds) unpack.Bounds {
	if bounds.Entries <= 0 {
		bounds.Entries = defaultEntries
	}
	if bounds.Bytes <= 0 {
		bounds.Bytes = 1 << 40
	}
	return bounds
}
