// The agent is one program with three roles: the first process of every container (`init`), the relay to the containers
// of a node (`relay`), and the front end of the HTTP API on a node that serves it (`gateway`).
//
//	agent init       in a container
//	agent relay      on a node; reads its configuration, one line of JSON, from stdin
//	agent gateway    on a node; the same, and it inherits the listening socket
//	agent shim …     run by init to start a process with limits
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
	"shoal/agent/internal/logs"
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
	logs.Use(config.LogFormat, "relay")
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
	logs.Use(config.LogFormat, "gateway")
	if os.Getenv("GOMAXPROCS") == "" {
		// The replicas and sandboxes use the other half. Measured on two cores, a request then costs a quarter less CPU
		// time, mostly because fewer threads wake each other.
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	listener := os.NewFile(uintptr(config.Listener), "listener")
	if err := gateway.Run(ctx, config, server.Version, listener, os.Stdout); err != nil {
		log.Printf("gateway: %v", err)
		return 1
	}
	return 0
}
