package proc

import (
	"os"
	"strings"
	"syscall"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/users"
)

const (
	maxArg = 128 << 10 // the kernel's, with the NUL at its end. How much in all, the kernel says.
	// MaxTimeout is the longest timeout in milliseconds, about 31 years. It keeps clock arithmetic from overflowing.
	MaxTimeout = 1e12
)

// Spec says what to start. A nil value in Env removes the variable from the container's environment.
type Spec struct {
	ID      string
	Argv    []string
	Env     map[string]*string
	Workdir string
	User    string
	Timeout time.Duration
	Limits  map[string]uint64

	Pty         *Terminal
	MergeStderr bool
	Stdin       bool
	Tail        bool
	// MaxOutput bounds the bytes kept of each stream; -1: no bound.
	MaxOutput int64
}

// Defaults are the sandbox's own settings, for what a Spec leaves out.
type Defaults struct {
	Env     []string
	Workdir string
	User    string // "": the agent's own user
}

// ValidID reports whether id matches p-[0-9a-z]{1,32}.
func ValidID(id string) bool {
	if len(id) < 3 || len(id) > 34 || id[:2] != "p-" {
		return false
	}
	for i := 2; i < len(id); i++ {
		if c := id[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

func (s *Spec) check() error {
	if !ValidID(s.ID) {
		return fault.Invalid("id", "it must match p-[0-9a-z]{1,32}")
	}
	if len(s.Argv) == 0 || s.Argv[0] == "" {
		return fault.Invalid("argv", "name a program to run")
	}
	for i, arg := range s.Argv {
		if strings.IndexByte(arg, 0) >= 0 {
			return fault.Invalid("argv", "argument %d holds a NUL byte", i)
		}
		if len(arg) >= maxArg {
			return fault.Invalid("argv", "argument %d is longer than %d bytes: pass it in a file or through stdin", i, maxArg)
		}
	}
	if err := CheckEnv(s.Env); err != nil {
		return err
	}
	return CheckWorkdir(s.Workdir)
}

// CheckEnv returns an error if an environment cannot hold a name or value.
func CheckEnv(env map[string]*string) error {
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return fault.Invalid("env", "%q cannot name a variable", name)
		}
		if value != nil && (strings.IndexByte(*value, 0) >= 0 || len(name)+len(*value)+2 > maxArg) {
			return fault.Invalid("env", "the value of %s holds a NUL byte or is longer than %d bytes", name, maxArg)
		}
	}
	return nil
}

// CheckWorkdir returns an error unless workdir is "" or an absolute path.
func CheckWorkdir(workdir string) error {
	switch {
	case strings.IndexByte(workdir, 0) >= 0:
		return fault.Invalid("workdir", "it holds a NUL byte, which a path cannot")
	case workdir != "" && workdir[0] != '/':
		return fault.Relative("workdir", workdir)
	}
	return nil
}

// Overlay applies changes to a copy of an environment. A nil value removes the variable.
func Overlay(base []string, changes map[string]*string) []string {
	env := make([]string, 0, len(base)+len(changes)+4)
	for _, entry := range base {
		name, _, _ := strings.Cut(entry, "=")
		if _, changed := changes[name]; !changed {
			env = append(env, entry)
		}
	}
	for name, value := range changes {
		if value != nil {
			env = append(env, name+"="+*value)
		}
	}
	return env
}

func lookupEnv(env []string, name string) (string, bool) {
	for _, entry := range env {
		if len(entry) > len(name) && entry[len(name)] == '=' && entry[:len(name)] == name {
			return entry[len(name)+1:], true
		}
	}
	return "", false
}

// plan is a Spec resolved against the sandbox into what the kernel needs.
type plan struct {
	path    string
	argv    []string
	env     []string
	workdir string
	user    *syscall.Credential
	userID  uint32
}

func (t *Table) resolve(s *Spec) (*plan, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	defaults := t.defaults.Load()
	p := &plan{argv: s.Argv, workdir: s.Workdir}
	name := s.User
	if name == "" {
		name = defaults.User
	}
	var who *users.User
	if name != "" {
		user, err := t.users.Lookup(name)
		if err != nil {
			return nil, err
		}
		who = user
		p.user = &syscall.Credential{Uid: user.UID, Gid: user.GID, Groups: user.Groups}
		p.userID = user.UID
	} else { // the real group is the agent's alone: see boot.shield
		uid, gid := uint32(syscall.Geteuid()), uint32(syscall.Getegid())
		p.user = &syscall.Credential{Uid: uid, Gid: gid, NoSetGroups: true}
	}
	p.env = t.environment(s, defaults, who)
	if p.workdir == "" {
		p.workdir = defaults.Workdir
	}
	if err := checkDirectory(p.workdir); err != nil {
		return nil, err
	}
	path, err := findCommand(s.Argv[0], p.env, p.workdir)
	if err != nil {
		return nil, err
	}
	p.path = path
	return p, nil
}

// environment returns the sandbox's environment with the spec's changes and the variable SHOAL_PROCESS, which marks the
// process. It adds HOME and USER if nobody has set them, and TERM for a terminal.
func (t *Table) environment(s *Spec, defaults *Defaults, who *users.User) []string {
	env := Overlay(defaults.Env, s.Env)
	if who == nil {
		who = t.self
	}
	home, set := lookupEnv(env, "HOME")
	_, asked := s.Env["HOME"]
	// The engine sets HOME for the agent's user. For another user that value is wrong, because nobody chose it.
	if stale := set && !asked && who.UID != t.self.UID && home == t.self.Home; !asked && (!set || stale) {
		if stale {
			env = Overlay(env, map[string]*string{"HOME": nil})
		}
		env = append(env, "HOME="+homeOf(who))
	}
	if _, set := lookupEnv(env, "USER"); !set && who.Name != "" {
		if _, asked := s.Env["USER"]; !asked {
			env = append(env, "USER="+who.Name)
		}
	}
	if _, set := lookupEnv(env, "TERM"); !set && s.Pty != nil {
		env = append(env, "TERM=xterm")
	}
	return append(env, "SHOAL_PROCESS="+s.ID)
}

func homeOf(user *users.User) string {
	if user.Home != "" {
		return user.Home
	}
	if user.UID == 0 {
		if st, err := os.Stat("/root"); err == nil && st.IsDir() {
			return "/root"
		}
	}
	return "/"
}
