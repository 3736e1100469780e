package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"shoal/layers/internal/report"
)

// File is a layer's archive, compressed with gzip, which every registry's clients can read.
type File struct {
	Path   string `json:"path"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

// MayPush tells whether a registry is there, and takes images from us: it begins an upload, and takes that back.
func MayPush(where Where) error {
	reference, err := where.parse()
	if err != nil {
		return err
	}
	err = remote.CheckPushPermission(reference, where.Registry.keychain(), newTransport(where.Registry))
	return where.notPushed(err)
}

// notPushed gives an error of a push a code: where a pull hears that there is no such image, for all that a stranger may
// know, a push hears that it may not.
func (w Where) notPushed(err error) error {
	if err == nil {
		return nil
	}
	var answer *transport.Error
	if errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden) {
		return report.Fail(report.PermissionDenied, "its registry does not take %s from this node: %.500s", w.Reference, err)
	}
	return w.failed(err)
}

// Push sends an image to a registry, without the layers that are there, and returns its manifest's digest.
func Push(where Where, config []byte, files []File) (string, error) {
	reference, err := where.parse()
	if err != nil {
		return "", err
	}
	image, err := imageOf(config, files)
	if err != nil {
		return "", err
	}
	whole, err := partial.CompressedToImage(image)
	if err != nil {
		return "", err
	}
	if err := remote.Write(reference, whole, where.Registry.options()...); err != nil {
		return "", where.notPushed(err)
	}
	digest, err := whole.Digest()
	return digest.String(), err
}

type fileImage struct {
	config   []byte
	manifest []byte
	layers   map[v1.Hash]fileLayer
}

func imageOf(config []byte, files []File) (*fileImage, error) {
	image := &fileImage{config: config, layers: map[v1.Hash]fileLayer{}}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	digest, size, err := v1.SHA256(bytes.NewReader(config))
	if err != nil {
		return nil, err
	}
	manifest.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: digest, Size: size}
	for _, file := range files {
		digest, err := v1.NewHash(file.Digest)
		if err != nil {
			return nil, report.Fail(report.Internal, "%q is no digest", file.Digest)
		}
		image.layers[digest] = fileLayer{file, digest}
		manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: types.OCILayer, Digest: digest, Size: file.Size})
	}
	image.manifest, err = json.Marshal(manifest)
	return image, err
}

func (i *fileImage) RawConfigFile() ([]byte, error)      { return i.config, nil }
func (i *fileImage) RawManifest() ([]byte, error)        { return i.manifest, nil }
func (i *fileImage) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }
func (i *fileImage) LayerByDigest(digest v1.Hash) (partial.CompressedLayer, error) {
	if layer, known := i.layers[digest]; known {
		return layer, nil
	}
	return partial.ConfigLayer(i)
}

type fileLayer struct {
	file   File
	digest v1.Hash
}

func (l fileLayer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l fileLayer) Size() (int64, error)                { return l.file.Size, nil }
func (l fileLayer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }
func (l fileLayer) Compressed() (io.ReadCloser, error)  { return os.Open(l.file.Path) }
