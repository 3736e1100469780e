package server

import (
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/proc"
)

// start holds the members that `run` and `exec` share.
type start struct {
	Op          string             `json:"op"`
	ID          string             `json:"id"`
	Argv        []text             `json:"argv"`
	Env         map[string]*text   `json:"env"`
	Workdir     *text              `json:"workdir"`
	User        string             `json:"user"`
	TimeoutMS   int64              `json:"timeout_ms"`
	Limits      map[string]*uint64 `json:"limits"`
	Stdin       bool               `json:"stdin"`
	MergeStderr bool               `json:"merge_stderr"`
}

func (r *start) spec() (*proc.Spec, error) {
	if r.TimeoutMS < 0 || r.TimeoutMS > proc.MaxTimeout {
		return nil, fault.Invalid("timeout_ms", "%d is not between 0 (none) and %d", r.TimeoutMS, int64(proc.MaxTimeout))
	}
	s := &proc.Spec{
		ID: r.ID, Argv: make([]string, len(r.Argv)), Env: overlay(r.Env), User: r.User, Stdin: r.Stdin, MergeStderr: r.MergeStderr,
		Timeout: time.Duration(r.TimeoutMS) * time.Millisecond, MaxOutput: -1,
	}
	for i, arg := range r.Argv {
		s.Argv[i] = string(arg)
	}
	if r.Workdir != nil {
		s.Workdir = string(*r.Workdir)
	}
	for name, value := range r.Limits {
		if value == nil {
			continue
		}
		if s.Limits == nil {
			s.Limits = make(map[string]uint64, len(r.Limits))
		}
		s.Limits[name] = *value
	}
	return s, proc.CheckLimits(s.Limits)
}

func overlay(env map[string]*text) map[string]*string {
	if len(env) == 0 {
		return nil
	}
	changes := make(map[string]*string, len(env))
	for name, value := range env {
		changes[name] = (*string)(value)
	}
	return changes
}
