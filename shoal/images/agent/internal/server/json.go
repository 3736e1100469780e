package server

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"shoal/agent/internal/fault"
)

// errGrammar means that a request is not valid JSON. It ends the connection.
var errGrammar = errors.New("a request is not valid JSON")

// text is a path, a name or an argument. A value that is not valid UTF-8 is encoded as {"b64": "…"}.
type text string

func (t *text) UnmarshalJSON(raw []byte) error {
	if len(raw) == 0 || raw[0] != '{' {
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return err
		}
		*t = text(s)
		return nil
	}
	var wrapped struct {
		B64 *string `json:"b64"`
	}
	if err := strict(raw, &wrapped); err != nil {
		return err
	}
	if wrapped.B64 == nil {
		return errors.New(`expected {"b64": "…"}`)
	}
	decoded, err := base64.StdEncoding.DecodeString(*wrapped.B64)
	if err != nil {
		return errors.New("b64 is not base64")
	}
	*t = text(decoded)
	return nil
}

func (t text) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(map[string]string{"b64": base64.StdEncoding.EncodeToString([]byte(t))})
}

func strict(raw []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return errGrammar
	}
	return nil
}

// decode parses a request strictly: an unknown member or a member of the wrong type is an error that names it.
func decode[T any](raw []byte) (*T, error) {
	request := new(T)
	err := strict(raw, request)
	if err == nil {
		return request, nil
	}
	var wrongType *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax), errors.Is(err, errGrammar), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return nil, errGrammar
	case errors.As(err, &wrongType):
		field := strings.TrimPrefix(wrongType.Field, "start.") // some releases of Go also name the embedded struct
		if field == "" {
			field = "request"
		}
		return nil, fault.Invalid(field, "a %s is the wrong type here", wrongType.Value)
	}
	if _, name, found := strings.Cut(err.Error(), "unknown field "); found {
		return nil, fault.Invalid(strings.Trim(name, `"`), "the request has no such member")
	}
	return nil, fault.Invalid("request", "%v", err)
}

// opOf returns the op that a request names. Clients put it first, so opOf rarely has to parse the whole request.
func opOf(raw []byte) (string, error) {
	if !utf8.Valid(raw) {
		return "", errGrammar
	}
	for _, prefix := range [...]string{`{"op":"`, `{"op": "`} {
		if rest, found := bytes.CutPrefix(raw, []byte(prefix)); found {
			if end := bytes.IndexByte(rest, '"'); end > 0 && end < 32 && bytes.IndexByte(rest[:end], '\\') < 0 {
				return string(rest[:end]), nil
			}
		}
	}
	var request struct {
		Op string `json:"op"`
	}
	if err := json.Unmarshal(raw, &request); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return "", errGrammar
		}
		return "", fault.Invalid("op", "a request must be an object with an op")
	}
	return request.Op, nil
}
