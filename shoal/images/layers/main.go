// The program unpacks, packs, fetches and pushes the layers of images. It alone reads archives, which are hostile, and
// talks to registries.
//
//	shoal-layers COMMAND    the request: one line of JSON on stdin, which stays open; the answer: lines of JSON on stdout
package main

import (
	"fmt"
	"os"

	"shoal/layers/internal/command"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: shoal-layers COMMAND  (a request in JSON on stdin)")
		os.Exit(2)
	}
	os.Exit(command.Run(os.Args[1], os.Stdin, os.Stdout))
}
