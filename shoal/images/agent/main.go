// The agent is the first process of every container (`init`), on each node the relay to those (`relay`), and on each node that serves the HTTP
// API the front door of that (`gateway`).
//
//	agent init       in a container
//	agent relay      on a node; its configuration is one line of JSON on stdin
//	agent gateway    the same; it is started with the listening socket
//	agent shim …     used by init where a start asks for limits
//	agent version
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"shoal/agent/internal/boot"
	"shoal/agent/internal/gateway"
	"shoal/agent/internal/proc"
	"shoal/agent/internal/relay"
	"shoal/agent/internal/server"
)

func main() {
	log.SetFlags(0)
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if len(args) == 0 {
		args = []string{""}
	}
	switch args[0] {
	case "init":
		return boot.Init()
	case "relay":
		return runRelay()
	case "gateway":
		return runGateway()
	case "shim":
		return proc.Shim(args[1:])
	case "version":
		fmt.Println(server.Version)
		return 0
	}
	log.Print("usage: agent init | relay | gateway | version")
	return 2
}

func runRelay() int {
	config, err := relay.ReadConfig(os.Stdin)
	if err != nil {
		log.Printf("relay: %v", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := relay.Run(ctx, config, server.Version, os.Stdout); err != nil {
		log.Printf("relay: %v", err)
		return 1
	}
	return 0
}

func runGateway() int {
	config, err := gateway.ReadConfig(os.Stdin)
	if err != nil {
		log.Printf("gateway: %v", err)
		return 2
	}
	if os.Getenv("GOMAXPROCS") == "" {
		// Enough for what the replicas and sandboxes on the other half can take. On two cores a request costs a quarter less this way: threads
		// that wake each other are most of the difference.
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	listening := os.NewFile(uintptr(config.Listener), "listener")
	if err := gateway.Run(ctx, config, server.Version, listening, os.Stdout); err != nil {
		log.Printf("gateway: %v", err)
		return 1
	}
	return 0
}
