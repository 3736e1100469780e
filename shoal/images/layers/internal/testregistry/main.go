// A registry in memory, for tests: prints its address and serves until stdin ends.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	quiet := registry.Logger(log.New(io.Discard, "", 0))
	go func() { _ = http.Serve(listener, registry.New(quiet)) }() //nolint:gosec // for one test
	_, _ = io.Copy(io.Discard, os.Stdin)
}
