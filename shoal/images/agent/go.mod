module shoal/agent

go 1.25
