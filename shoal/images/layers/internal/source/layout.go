package source

import (
	"crypto/tls"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"shoal/layers/internal/report"
)

// namedBy is the annotation by which a layout names its images.
const namedBy = "org.opencontainers.image.ref.name"

func fromLayout(where Where) (v1.Image, error) {
	if stat, err := os.Stat(where.Path); err != nil || !stat.IsDir() {
		return nil, report.Invalid("%s is no directory in the OCI layout", where.Path)
	}
	index, err := layout.ImageIndexFromPath(where.Path)
	if err != nil {
		return nil, where.failed(err)
	}
	image, err := fromIndex(index, 2, func(each v1.Descriptor) bool {
		return where.Reference == "" || each.Annotations[namedBy] == where.Reference
	})
	if err != nil {
		return nil, where.failed(err)
	}
	return image, nil
}

// insecureTLS is for a registry that the caller has called insecure.
func insecureTLS() *tls.Config { return &tls.Config{InsecureSkipVerify: true} } //nolint:gosec // it was asked for
