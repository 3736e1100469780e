// Package source reads images from where they lie: a registry, the archive of `docker save`, a directory in the OCI layout.
package source

import (
	"errors"
	"io"
	"os"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"shoal/layers/internal/report"
)

const (
	configLimit   = 8 << 20
	manifestLimit = 8 << 20
	mostLayers    = 500 // which overlayfs takes
)

// Where tells where an image lies.
type Where struct {
	Kind      string   `json:"kind"`      // registry, docker-archive, oci-layout
	Reference string   `json:"reference"` // in a registry; of the image in an archive or a layout, "" if it holds one
	Path      string   `json:"path"`      // of an archive or a layout
	Registry  Registry `json:"registry"`
}

// Layer is one of an image, as its manifest lists it.
type Layer struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	Name   string `json:"name"` // in an archive of `docker save`, which lists neither
}

// Image tells what an image consists of, lowest layer first. Config is as it was given, to the byte.
type Image struct {
	Config []byte  `json:"config"`
	Layers []Layer `json:"layers"`
}

// Inspect reads an image's configuration and the list of its layers.
func Inspect(where Where) (Image, error) {
	if where.Kind == "docker-archive" {
		return inspectArchive(where)
	}
	image, err := find(where)
	if err != nil {
		return Image{}, err
	}
	manifest, err := image.Manifest()
	if err != nil {
		return Image{}, where.failed(err)
	}
	if err := check(manifest); err != nil {
		return Image{}, err
	}
	config, err := image.RawConfigFile()
	if err != nil {
		return Image{}, where.failed(err)
	}
	found := Image{Config: config}
	for _, layer := range manifest.Layers {
		found.Layers = append(found.Layers, Layer{Digest: layer.Digest.String(), Size: layer.Size})
	}
	return found, nil
}

func check(manifest *v1.Manifest) error {
	if manifest.Config.Size > configLimit {
		return report.Invalid("the image's configuration has %d bytes; the most is %d", manifest.Config.Size, configLimit)
	}
	if len(manifest.Layers) > mostLayers {
		return report.Invalid("the image has %d layers; the most is %d", len(manifest.Layers), mostLayers)
	}
	for _, layer := range manifest.Layers {
		if !layer.MediaType.IsDistributable() || !layer.MediaType.IsLayer() || len(layer.URLs) > 0 {
			return report.Invalid("the image has a layer of the kind %.80q, which is not to be fetched", layer.MediaType)
		}
		if layer.Size < 0 {
			return report.Invalid("the image has a layer of %d bytes", layer.Size)
		}
	}
	return nil
}

// Open returns the archive of a layer as it is stored. It is compressed in any way, or not.
func Open(where Where, layer Layer) (io.ReadCloser, error) {
	if where.Kind == "docker-archive" {
		return openArchived(where.Path, layer.Name)
	}
	digest, err := v1.NewHash(layer.Digest)
	if err != nil {
		return nil, report.Invalid("a layer's digest is none: %v", err)
	}
	if where.Kind == "registry" {
		return openBlob(where, digest)
	}
	image, err := find(where)
	if err != nil {
		return nil, err
	}
	found, err := image.LayerByDigest(digest)
	if err != nil {
		return nil, where.failed(err)
	}
	opened, err := found.Compressed()
	if err != nil {
		return nil, where.failed(err)
	}
	return opened, nil
}

func find(where Where) (v1.Image, error) {
	switch where.Kind {
	case "registry":
		return fromRegistry(where)
	case "oci-layout":
		return fromLayout(where)
	}
	return nil, report.Fail(report.Internal, "there is no source %q", where.Kind)
}

// Platform is that of the images which run here.
func Platform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

func fits(platform *v1.Platform) bool {
	return platform == nil || platform.OS == "" ||
		platform.OS == "linux" && platform.Architecture == runtime.GOARCH
}

// fromIndex returns the image of an index that runs here.
func fromIndex(index v1.ImageIndex, depth int, wanted func(v1.Descriptor) bool) (v1.Image, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, report.Invalid("the image's index is broken: %v", err)
	}
	others := []string{}
	for _, each := range manifest.Manifests {
		if !wanted(each) {
			continue
		}
		if !fits(each.Platform) {
			others = append(others, each.Platform.String())
			continue
		}
		switch {
		case each.MediaType.IsImage():
			return index.Image(each.Digest)
		case each.MediaType.IsIndex() && depth > 0:
			inner, err := index.ImageIndex(each.Digest)
			if err != nil {
				return nil, report.Invalid("the image's index is broken: %v", err)
			}
			return fromIndex(inner, depth-1, func(v1.Descriptor) bool { return true })
		}
	}
	return nil, noPlatform(others)
}

func noPlatform(others []string) error {
	if len(others) == 0 {
		return report.Invalid("there is no image in it")
	}
	if len(others) > 10 {
		others = others[:10]
	}
	return report.Invalid("the image is for %v, and this machine is linux/%s", others, runtime.GOARCH)
}

// failed gives an error of the library's a code.
func (w Where) failed(err error) error {
	var failure *report.Failure
	switch {
	case errors.As(err, &failure):
		return err
	case w.Kind == "registry":
		return registryError(err, w.Reference)
	case errors.Is(err, os.ErrNotExist):
		return report.Invalid("the image is not whole: %v", err)
	}
	return report.Invalid("the image cannot be read: %v", err)
}
