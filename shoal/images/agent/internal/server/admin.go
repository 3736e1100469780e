package server

import (
	"errors"
	"os"
	"path"
	"syscall"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
	"shoal/agent/internal/proc"
	"shoal/agent/internal/users"
)

type configureRequest struct {
	Op      string           `json:"op"`
	Env     map[string]*text `json:"env"`
	Workdir *text            `json:"workdir"`
	User    string           `json:"user"`
	// What the sandbox must keep to itself: files, and (NoCore) that its processes leave no core files.
	Secrets []secretFiles `json:"secrets"`
	NoCore  bool          `json:"no_core"`
}

func (s *Server) configure(st *mux.Stream, raw []byte) error {
	request, err := decode[configureRequest](raw)
	if err != nil {
		return err
	}
	changes := overlay(request.Env)
	if err := proc.CheckEnv(changes); err != nil {
		return err
	}
	defaults := s.base
	defaults.Env = proc.Overlay(s.base.Env, changes)
	if request.User != "" {
		defaults.User = request.User
	}
	who := s.table.Self()
	if defaults.User != "" {
		who, err = s.table.User(defaults.User)
	}
	if err != nil {
		return err
	}
	if request.Workdir != nil {
		workdir := string(*request.Workdir)
		if err := proc.CheckWorkdir(workdir); err != nil {
			return err
		}
		if workdir == "" {
			return fault.Invalid("workdir", "give an absolute path, or null for the container's own directory")
		}
		if err := makeDirectory(workdir, who); err != nil {
			return fault.Path("workdir", err)
		}
		defaults.Workdir = workdir
	}
	if request.NoCore {
		dumpNothing()
	}
	for i := range request.Secrets {
		if err := request.Secrets[i].write(who); err != nil {
			return err
		}
	}
	s.table.SetDefaults(defaults)
	st.Reply(empty{})
	return nil
}

// makeDirectory makes a directory and its missing parents. The user owns those that it makes.
func makeDirectory(dir string, who *users.User) error {
	dir = path.Clean(dir)
	info, err := os.Stat(dir)
	if err == nil {
		if !info.IsDir() {
			return syscall.ENOTDIR
		}
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := makeDirectory(path.Dir(dir), who); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Lchown(dir, int(who.UID), int(who.GID))
}

type idleRequest struct {
	Op      string `json:"op"`
	AfterMS int64  `json:"after_ms"`
}

func (s *Server) idle(st *mux.Stream, raw []byte) error {
	request, err := decode[idleRequest](raw)
	if err != nil {
		return err
	}
	after, err := milliseconds("after_ms", request.AfterMS)
	if err != nil {
		return err
	}
	for {
		idle, wait := s.activity.Idle(after)
		if wait <= 0 && idle > 0 {
			st.Reply(map[string]int64{"idle_ms": idle.Milliseconds()})
			return nil
		}
		timer := time.NewTimer(max(wait, time.Millisecond))
		select {
		case <-timer.C:
		case <-st.Done():
			timer.Stop()
			return mux.ErrLost
		}
	}
}

type shutdownRequest struct {
	Op      string `json:"op"`
	GraceMS int64  `json:"grace_ms"`
}

func (s *Server) shutdown(st *mux.Stream, raw []byte) error {
	request, err := decode[shutdownRequest](raw)
	if err != nil {
		return err
	}
	grace, err := milliseconds("grace_ms", request.GraceMS)
	if err != nil {
		return err
	}
	s.table.KillAll(grace)
	st.Reply(empty{})
	st.Flush(time.Second)
	s.stop(0)
	return nil
}

func milliseconds(field string, n int64) (time.Duration, error) {
	if n < 0 || n > proc.MaxTimeout {
		return 0, fault.Invalid(field, "%d is not between 0 and %d", n, int64(proc.MaxTimeout))
	}
	return time.Duration(n) * time.Millisecond, nil
}
