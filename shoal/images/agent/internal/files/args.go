package files

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
)

const (
	// maxPath is the kernel's limit in bytes, including the NUL at the end.
	maxPath = 4096
	modes   = 0o7777
)

// decode parses a request strictly: an unknown member or a member of the wrong type is an error that names it.
func decode(raw []byte, into any) error {
	if !utf8.Valid(raw) {
		return frame.ErrMalformed
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(into)
	if err == nil {
		if _, err = decoder.Token(); err == io.EOF {
			return nil
		}
		return frame.ErrMalformed
	}
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		field := wrongType.Field
		if field == "" {
			field = "request"
		}
		return fault.Invalid(field, "a %s is the wrong type here", wrongType.Value)
	}
	if _, name, found := strings.Cut(err.Error(), "unknown field "); found {
		return fault.Invalid(strings.Trim(name, `"`), "the request has no such member")
	}
	return frame.ErrMalformed
}

// pathArg is a path as the client sent it. Errors in it are returned by valid, which knows the name of its member.
type pathArg struct {
	path  string
	given bool
	wrong string
}

// UnmarshalJSON takes a string, or {"b64": "…"} for a path that is not UTF-8. It leaves a wrong form for valid to
// report.
func (p *pathArg) UnmarshalJSON(raw []byte) error {
	p.given = true
	if raw[0] == '"' {
		return json.Unmarshal(raw, &p.path)
	}
	var wrapped struct {
		B64 *string `json:"b64"`
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if raw[0] != '{' || decoder.Decode(&wrapped) != nil || wrapped.B64 == nil {
		p.wrong = `give a string, or {"b64": "…"} if it is not UTF-8`
		return nil
	}
	decoded, err := base64.StdEncoding.DecodeString(*wrapped.B64)
	if err != nil {
		p.wrong = "b64 is not base64"
	}
	p.path = string(decoded)
	return nil
}

// valid returns the path for the kernel. It returns an error unless the path is absolute, short enough and without NUL.
func (p *pathArg) valid(field string) (string, error) {
	switch {
	case p.wrong != "":
		return "", fault.Invalid(field, "%s", p.wrong)
	case !p.given || p.path == "":
		return "", fault.Invalid(field, "give an absolute path")
	case len(p.path) >= maxPath:
		return "", fault.Invalid(field, "it is longer than %d bytes", maxPath-1)
	case strings.IndexByte(p.path, 0) >= 0:
		return "", fault.Invalid(field, "it holds a NUL byte, which a path cannot")
	case p.path[0] != '/':
		return "", fault.Relative(field, p.path)
	}
	return p.path, nil
}

func checkMode(mode *uint32) error {
	if mode != nil && *mode > modes {
		return fault.Invalid("mode", "%#o is not between 0 and %#o", *mode, modes)
	}
	return nil
}

// text returns a name or path as it is sent: a string, or its bytes in base64 if it is not UTF-8.
func text(s string) any {
	if utf8.ValidString(s) {
		return s
	}
	return struct {
		B64 []byte `json:"b64"`
	}{[]byte(s)}
}

// split divides a path into its directory and its last component. The last component of the root is ".".
func split(path string) (dir, base string) {
	path = strings.TrimRight(path, "/")
	if path == "" {
		return "/", "."
	}
	cut := strings.LastIndexByte(path, '/')
	dir, base = strings.TrimRight(path[:cut], "/"), path[cut+1:]
	if dir == "" {
		dir = "/"
	}
	return dir, base
}

// plain reports whether a last component is a name, and not "", "." or "..".
func plain(base string) bool { return base != "" && base != "." && base != ".." }

// join appends a name to the path of a directory.
func join(dir, name string) string { return strings.TrimRight(dir, "/") + "/" + name }
