package source

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"shoal/layers/internal/report"
)

// Registry tells how to talk to one.
type Registry struct {
	Username string  `json:"username"` // without one: what Docker's configuration and its credential helpers know
	Password string  `json:"password"`
	Insecure bool    `json:"insecure"` // plain HTTP, or a certificate that nobody vouches for
	StallS   float64 `json:"stall_s"`  // seconds within which it must say something
}

const (
	defaultStall = 30 * time.Second
	slowest      = 4 << 10 // bytes within that time
)

func (w Where) parse() (name.Reference, error) {
	options := []name.Option{}
	if w.Registry.Insecure {
		options = append(options, name.Insecure)
	}
	reference, err := name.ParseReference(w.Reference, options...)
	if err != nil && strings.Contains(w.Reference, "@") { // it does not tell why
		_, err = name.NewDigest(w.Reference, options...)
	} else if err != nil {
		_, err = name.NewTag(w.Reference, options...)
	}
	if err != nil {
		return nil, report.Invalid("%.200q is no image reference: %v", w.Reference, err)
	}
	return reference, nil
}

func (r Registry) options() []remote.Option {
	options := []remote.Option{
		remote.WithPlatform(Platform()), remote.WithTransport(newTransport(r)), remote.WithUserAgent("shoal"),
	}
	return append(options, remote.WithAuthFromKeychain(r.keychain()))
}

func (r Registry) keychain() authn.Keychain {
	if r.Username != "" || r.Password != "" {
		return given{authn.Basic{Username: r.Username, Password: r.Password}}
	}
	return authn.DefaultKeychain
}

// given are credentials for whatever registry is asked.
type given struct{ authn.Basic }

func (g given) Resolve(authn.Resource) (authn.Authenticator, error) { return &g.Basic, nil }

func fromRegistry(where Where) (v1.Image, error) {
	reference, err := where.parse()
	if err != nil {
		return nil, err
	}
	found, err := remote.Get(reference, where.Registry.options()...)
	if err != nil {
		return nil, where.failed(err)
	}
	switch {
	case found.MediaType.IsIndex():
		index, err := found.ImageIndex()
		if err != nil {
			return nil, where.failed(err)
		}
		image, err := fromIndex(index, 1, func(v1.Descriptor) bool { return true })
		if err != nil {
			return nil, where.failed(err)
		}
		return image, nil
	case found.MediaType.IsImage():
		image, err := found.Image()
		if err != nil {
			return nil, where.failed(err)
		}
		return image, nil
	}
	return nil, report.Invalid("%s is of the kind %.80q, which is no image", where.Reference, found.MediaType)
}

func openBlob(where Where, digest v1.Hash) (io.ReadCloser, error) {
	reference, err := where.parse()
	if err != nil {
		return nil, err
	}
	layer, err := remote.Layer(reference.Context().Digest(digest.String()), where.Registry.options()...)
	if err != nil {
		return nil, where.failed(err)
	}
	opened, err := layer.Compressed()
	if err != nil {
		return nil, where.failed(err)
	}
	return &blobReader{opened, where}, nil
}

// blobReader gives errors while a layer is read a code.
type blobReader struct {
	io.ReadCloser
	where Where
}

func (b *blobReader) Read(buffer []byte) (int, error) {
	n, err := b.ReadCloser.Read(buffer)
	if err != nil && err != io.EOF {
		err = b.where.failed(err)
	}
	return n, err
}

// registryError tells what a registry's answer, or its silence, means.
func registryError(err error, reference string) error {
	var answer *transport.Error
	var network net.Error
	var failure *report.Failure
	switch said := err.Error(); {
	case errors.As(err, &failure):
		return failure
	case errors.As(err, &answer) && (answer.StatusCode >= 500 || answer.StatusCode == http.StatusTooManyRequests):
		return report.Fail(report.Unavailable, "the registry of %s does not serve now: %.500s", reference, said)
	case errors.As(err, &answer):
		return report.Fail(report.ImageNotFound, "image %s cannot be had: %.500s", reference, said)
	case errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return report.Fail(report.Unavailable, "the registry of %s does not answer: %.500s", reference, said)
	}
	return report.Invalid("what the registry has for %s is no image: %.500s", reference, err.Error())
}

// newTransport bounds how long a registry may be silent, and how much it may say where an image's layers are not meant.
func newTransport(r Registry) http.RoundTripper {
	stall := time.Duration(r.StallS * float64(time.Second))
	if stall <= 0 {
		stall = defaultStall
	}
	plain := remote.DefaultTransport.(*http.Transport).Clone()
	plain.DialContext = (&net.Dialer{Timeout: stall}).DialContext
	plain.TLSHandshakeTimeout = stall
	plain.ResponseHeaderTimeout = stall
	plain.MaxResponseHeaderBytes = 64 << 10
	if r.Insecure {
		plain.TLSClientConfig = insecureTLS()
	}
	return &watchful{plain, stall}
}

type watchful struct {
	plain http.RoundTripper
	stall time.Duration
}

func (w *watchful) RoundTrip(request *http.Request) (*http.Response, error) {
	answer, err := w.plain.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	watched := &watchedBody{body: answer.Body, stall: w.stall, host: request.URL.Host}
	watched.arm()
	answer.Body = watched
	if !strings.Contains(request.URL.Path, "/blobs/") && request.Method != http.MethodHead && answer.Request.Response == nil {
		answer.Body = &boundedBody{watched, manifestLimit}
	}
	return answer, nil
}

// watchedBody closes an answer that comes too slowly.
type watchedBody struct {
	body   io.ReadCloser
	stall  time.Duration
	host   string
	read   atomic.Int64
	seen   int64
	late   atomic.Bool
	timer  *time.Timer
	closed sync.Once
}

func (w *watchedBody) arm() {
	w.timer = time.AfterFunc(w.stall, func() {
		if now := w.read.Load(); now-w.seen >= slowest {
			w.seen = now
			w.timer.Reset(w.stall)
			return
		}
		w.late.Store(true)
		_ = w.body.Close()
	})
}

func (w *watchedBody) Read(buffer []byte) (int, error) {
	n, err := w.body.Read(buffer)
	w.read.Add(int64(n))
	if err != nil && w.late.Load() {
		return n, report.Fail(report.Unavailable, "%s sent less than %d bytes within %s", w.host, slowest, w.stall)
	}
	return n, err
}

func (w *watchedBody) Close() error {
	w.closed.Do(func() { w.timer.Stop() })
	return w.body.Close()
}

type boundedBody struct {
	*watchedBody
	left int64
}

func (b *boundedBody) Read(buffer []byte) (int, error) {
	n, err := b.watchedBody.Read(buffer)
	if b.left -= int64(n); b.left < 0 {
		return 0, report.Invalid("the answer of %s is longer than %d bytes", b.host, manifestLimit)
	}
	return n, err
}
