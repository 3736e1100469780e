package command

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"shoal/layers/internal/layer"
	"shoal/layers/internal/report"
	"shoal/layers/internal/source"
)

// ask runs a command as its caller would, and returns its result, or its error.
func ask(t *testing.T, command string, request, result any) *report.Failure {
	t.Helper()
	line, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	open, closed := io.Pipe() // stdin stays open
	t.Cleanup(func() { _ = closed })
	var out bytes.Buffer
	code := Run(command, io.MultiReader(bytes.NewReader(line), open), &out)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var answer struct {
		Result json.RawMessage `json:"result"`
		Error  *report.Failure `json:"error"`
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &answer); err != nil {
		t.Fatal(err)
	}
	if (code == 0) != (answer.Error == nil) {
		t.Errorf("code %d with %+v", code, answer.Error)
	}
	if answer.Error == nil && result != nil {
		if err := json.Unmarshal(answer.Result, result); err != nil {
			t.Fatal(err)
		}
	}
	return answer.Error
}

func tarOf(t *testing.T, names ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	writer := tar.NewWriter(&out)
	for _, each := range names {
		if err := writer.WriteHeader(&tar.Header{Name: each, Mode: 0o644, Size: int64(len(each))}); err != nil {
			t.Fatal(err)
		}
		_, _ = writer.Write([]byte(each))
	}
	_ = writer.Close()
	return out.Bytes()
}

// image makes one of a layer for each name; the layer holds a file of the name.
func image(t *testing.T, architecture string, names ...string) v1.Image {
	t.Helper()
	made, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: architecture})
	if err != nil {
		t.Fatal(err)
	}
	for _, each := range names {
		data := tarOf(t, each)
		opened, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if made, err = mutate.AppendLayers(made, opened); err != nil {
			t.Fatal(err)
		}
	}
	return made
}

// server is a registry in memory, with a handler in front that may answer instead.
func server(t *testing.T, front func(http.ResponseWriter, *http.Request) bool) string {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	started := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if front == nil || !front(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() { started.CloseClientConnections(); started.Close() })
	return strings.TrimPrefix(started.URL, "http://")
}

func write(t *testing.T, reference string, made v1.Image) {
	t.Helper()
	parsed, err := name.ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, made); err != nil {
		t.Fatal(err)
	}
}

func fetchAll(t *testing.T, where source.Where, found source.Image) *report.Failure {
	t.Helper()
	var config v1.ConfigFile
	if err := json.Unmarshal(found.Config, &config); err != nil {
		t.Fatal(err)
	}
	for i, each := range found.Layers {
		into := t.TempDir()
		var made layer.Result
		request := fetchRequest{Source: where, Layer: each, DiffID: config.RootFS.DiffIDs[i].String(), Into: into}
		if failure := ask(t, "fetch", request, &made); failure != nil {
			return failure
		}
		if made.DiffID != request.DiffID || !made.Exact {
			t.Errorf("%+v", made)
		}
	}
	return nil
}

func other() string {
	if runtime.GOARCH == "arm64" {
		return "amd64"
	}
	return "arm64"
}

func TestTheImageOfThisMachineIsFetched(t *testing.T) {
	host := server(t, nil)
	mine := image(t, runtime.GOARCH, "one", "two")
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: image(t, other(), "three"), Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: other()}}},
		mutate.IndexAddendum{Add: mine, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
	)
	reference, _ := name.ParseReference(host + "/a/b:1")
	if err := remote.WriteIndex(reference, index); err != nil {
		t.Fatal(err)
	}
	where := source.Where{Kind: "registry", Reference: host + "/a/b:1"}
	var found source.Image
	if failure := ask(t, "inspect", inspectRequest{where}, &found); failure != nil {
		t.Fatal(failure)
	}
	config, _ := mine.RawConfigFile()
	if !bytes.Equal(found.Config, config) || len(found.Layers) != 2 {
		t.Errorf("found %s with %d layers", found.Config, len(found.Layers))
	}
	if failure := fetchAll(t, where, found); failure != nil {
		t.Error(failure)
	}
	only := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: image(t, other(), "x"), Descriptor: v1.Descriptor{
		Platform: &v1.Platform{OS: "linux", Architecture: other()}}})
	foreign, _ := name.ParseReference(host + "/a/foreign:1")
	if err := remote.WriteIndex(foreign, only); err != nil {
		t.Fatal(err)
	}
	where.Reference = host + "/a/foreign:1"
	failure := ask(t, "inspect", inspectRequest{where}, nil)
	if failure == nil || failure.Code != report.InvalidRequest || failure.Field != "image" {
		t.Errorf("another architecture: %+v", failure)
	}
}

func TestArchivesAndLayoutsAreRead(t *testing.T) {
	made := image(t, runtime.GOARCH, "one", "two")
	archive := filepath.Join(t.TempDir(), "saved.tar")
	tag, _ := name.NewTag("app:1")
	if err := tarball.WriteToFile(archive, tag, made); err != nil {
		t.Fatal(err)
	}
	directory, err := layout.Write(t.TempDir(), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := directory.AppendImage(made, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "1"})); err != nil {
		t.Fatal(err)
	}
	for _, where := range []source.Where{
		{Kind: "docker-archive", Path: archive},
		{Kind: "docker-archive", Path: archive, Reference: "app:1"},
		{Kind: "oci-layout", Path: string(directory)},
		{Kind: "oci-layout", Path: string(directory), Reference: "1"},
	} {
		var found source.Image
		if failure := ask(t, "inspect", inspectRequest{where}, &found); failure != nil {
			t.Errorf("%+v: %v", where, failure)
			continue
		}
		if failure := fetchAll(t, where, found); failure != nil {
			t.Errorf("%+v: %v", where, failure)
		}
	}
	for _, where := range []source.Where{
		{Kind: "docker-archive", Path: archive, Reference: "another:1"},
		{Kind: "docker-archive", Path: os.DevNull},
		{Kind: "oci-layout", Path: string(directory), Reference: "another"},
		{Kind: "oci-layout", Path: t.TempDir()},
	} {
		if failure := ask(t, "inspect", inspectRequest{where}, nil); failure == nil || failure.Code != report.InvalidRequest {
			t.Errorf("%+v: %+v", where, failure)
		}
	}
}

func TestARegistryMayBeWrongInManyWays(t *testing.T) {
	var host string
	var behave func(http.ResponseWriter, *http.Request) bool
	host = server(t, func(w http.ResponseWriter, r *http.Request) bool { return behave != nil && behave(w, r) })
	write(t, host+"/app:1", image(t, runtime.GOARCH, "one"))
	where := source.Where{Kind: "registry", Reference: host + "/app:1", Registry: source.Registry{StallS: 0.3}}
	var good source.Image
	if failure := ask(t, "inspect", inspectRequest{where}, &good); failure != nil {
		t.Fatal(failure)
	}
	blob := func(answer func(http.ResponseWriter)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			is := strings.Contains(r.URL.Path, "/blobs/"+good.Layers[0].Digest)
			if is {
				answer(w)
			}
			return is
		}
	}
	stall := func(w http.ResponseWriter) {
		w.(http.Flusher).Flush()
		time.Sleep(time.Second)
	}
	cases := map[string]struct {
		command string
		code    string
		behave  func(http.ResponseWriter, *http.Request) bool
	}{
		"denies":            {"inspect", report.ImageNotFound, status("/manifests/", http.StatusForbidden)},
		"has no such image": {"inspect", report.ImageNotFound, status("/manifests/", http.StatusNotFound)},
		"is overloaded":     {"fetch", report.Unavailable, status("/blobs/", http.StatusTooManyRequests)},
		"says nothing": {"inspect", report.Unavailable, func(http.ResponseWriter, *http.Request) bool {
			time.Sleep(time.Second)
			return true
		}},
		"stalls in a layer": {"fetch", report.Unavailable, blob(func(w http.ResponseWriter) {
			_, _ = w.Write([]byte{0x1f, 0x8b})
			stall(w)
		})},
		"sends another layer": {"fetch", report.InvalidRequest, blob(func(w http.ResponseWriter) {
			_, _ = w.Write(tarOf(t, "other"))
		})},
		"sends more than it said": {"fetch", report.InvalidRequest, blob(func(w http.ResponseWriter) {
			w.(http.Flusher).Flush() // so that no length is sent
			_, _ = w.Write(bytes.Repeat([]byte{0}, 1<<20))
		})},
		"breaks off": {"fetch", report.Unavailable, blob(func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", fmt.Sprint(good.Layers[0].Size))
			w.WriteHeader(http.StatusOK)
			_, _ = w.Write([]byte{0x1f})
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		})},
		"has an endless manifest": {"inspect", report.InvalidRequest, func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			for i := 0; i < 300; i++ {
				_, _ = w.Write(bytes.Repeat([]byte(" "), 1<<16))
			}
			return true
		}},
		"has no image there": {"inspect", report.InvalidRequest, func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write([]byte("<html>"))
			return true
		}},
	}
	for title, each := range cases {
		t.Run(title, func(t *testing.T) {
			behave = each.behave
			defer func() { behave = nil }()
			var failure *report.Failure
			began := time.Now()
			if each.command == "inspect" {
				failure = ask(t, "inspect", inspectRequest{where}, nil)
			} else {
				failure = fetchAll(t, where, good)
			}
			if failure == nil || failure.Code != each.code {
				t.Errorf("%+v", failure)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func status(path string, code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		is := strings.Contains(r.URL.Path, path)
		if is {
			w.WriteHeader(code)
		}
		return is
	}
}

func TestHostileManifestsAreRefused(t *testing.T) {
	host := server(t, nil)
	config := static.NewLayer([]byte("{}"), types.OCILayer)
	foreign, err := mutate.Append(image(t, runtime.GOARCH), mutate.Addendum{
		Layer: config, MediaType: types.DockerForeignLayer, URLs: []string{"http://169.254.169.254/"}})
	if err != nil {
		t.Fatal(err)
	}
	parsed, _ := name.ParseReference(host + "/foreign:1")
	if err := remote.Write(parsed, foreign); err != nil {
		t.Fatal(err)
	}
	where := source.Where{Kind: "registry", Reference: host + "/foreign:1"}
	if failure := ask(t, "inspect", inspectRequest{where}, nil); failure == nil || failure.Code != report.InvalidRequest {
		t.Errorf("%+v", failure)
	}
}

func TestCredentialsAreThoseGivenOrDockersOwn(t *testing.T) {
	host := server(t, func(w http.ResponseWriter, r *http.Request) bool {
		username, password, _ := r.BasicAuth()
		if username == "user" && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	where := source.Where{Kind: "registry", Reference: host + "/app:1"}
	config := []byte(`{"architecture":"` + runtime.GOARCH + `","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}`)
	push := pushRequest{Source: where, Config: config}
	if failure := ask(t, "push", push, nil); failure == nil || failure.Code != report.PermissionDenied {
		t.Errorf("without credentials: %+v", failure)
	}
	push.Source.Registry = source.Registry{Username: "user", Password: "secret"}
	if failure := ask(t, "push", push, nil); failure != nil {
		t.Fatal(failure)
	}
	if failure := ask(t, "inspect", inspectRequest{where}, nil); failure == nil {
		t.Error("it was let in without credentials")
	}
	said := fmt.Sprintf(`{"auths":{%q:{"username":"user","password":"secret"}}}`, host)
	if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(said), 0o600); err != nil {
		t.Fatal(err)
	}
	var found source.Image
	if failure := ask(t, "inspect", inspectRequest{where}, &found); failure != nil || !bytes.Equal(found.Config, config) {
		t.Errorf("with Docker's configuration: %+v, %s", failure, found.Config)
	}
}
