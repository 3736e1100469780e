package source

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"

	"shoal/layers/internal/report"
	"shoal/layers/internal/stream"
)

// savedImage is one of an archive of `docker save`, as its manifest.json lists it.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string // names in the archive, lowest first
}

// inspectArchive reads the configuration and the layers' names of an image in an archive of `docker save`.
func inspectArchive(where Where) (Image, error) {
	var listed []savedImage
	manifest, err := readArchived(where.Path, "manifest.json", manifestLimit)
	if err != nil {
		return Image{}, err
	}
	if err := json.Unmarshal(manifest, &listed); err != nil {
		return Image{}, report.Invalid("the archive's manifest is broken: %v", err)
	}
	saved, err := choose(listed, where.Reference)
	if err != nil {
		return Image{}, err
	}
	if len(saved.Layers) > mostLayers {
		return Image{}, report.Invalid("the image has %d layers; the most is %d", len(saved.Layers), mostLayers)
	}
	found := Image{}
	if found.Config, err = readArchived(where.Path, saved.Config, configLimit); err != nil {
		return Image{}, err
	}
	for _, each := range saved.Layers {
		found.Layers = append(found.Layers, Layer{Name: each})
	}
	return found, nil
}

func choose(listed []savedImage, reference string) (savedImage, error) {
	if reference == "" {
		if len(listed) != 1 {
			return savedImage{}, report.Invalid("the archive holds %d images; say which", len(listed))
		}
		return listed[0], nil
	}
	tag, err := name.NewTag(reference)
	if err != nil {
		return savedImage{}, report.Invalid("%.200q is no name of an image: %v", reference, err)
	}
	for _, each := range listed {
		if slices.ContainsFunc(each.RepoTags, func(named string) bool {
			other, err := name.NewTag(named)
			return err == nil && other.Name() == tag.Name()
		}) {
			return each, nil
		}
	}
	return savedImage{}, report.Invalid("the archive holds no image %.200q", reference)
}

func readArchived(archive, wanted string, limit int64) ([]byte, error) {
	opened, err := openArchived(archive, wanted)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	content, err := io.ReadAll(io.LimitReader(opened, limit+1))
	if err != nil {
		return nil, report.Invalid("the archive is broken: %v", err)
	}
	if int64(len(content)) > limit {
		return nil, report.Invalid("%.80q in the archive has more than %d bytes, which is the most", wanted, limit)
	}
	return content, nil
}

// openArchived opens a file in an archive, which may be compressed. Old archives have links in the place of layers that
// several images share.
func openArchived(archive, wanted string) (io.ReadCloser, error) {
	const mostLinks = 4
	wanted = path.Clean(wanted)
	for range mostLinks {
		file, err := os.Open(archive)
		if err != nil {
			return nil, report.Invalid("the archive cannot be read: %v", err)
		}
		header, content, err := seek(file, wanted)
		switch {
		case err != nil:
			_ = file.Close()
			return nil, err
		case header.Typeflag == tar.TypeReg:
			return archived{content, file}, nil
		}
		_ = file.Close()
		if header.Typeflag == tar.TypeSymlink {
			wanted = path.Join(path.Dir(wanted), header.Linkname)
		} else {
			wanted = path.Clean(header.Linkname)
		}
	}
	return nil, report.Invalid("the archive has a chain of links at %.80q", wanted)
}

func seek(file *os.File, wanted string) (*tar.Header, io.Reader, error) {
	var plain io.Reader = file // which lets tar jump over what it does not read
	start := make([]byte, 4)
	n, _ := file.ReadAt(start, 0)
	if stream.Detect(start[:n]) != stream.None {
		inner, err := stream.Decompress(file)
		if err != nil {
			return nil, nil, err
		}
		plain = inner
	}
	reader := tar.NewReader(plain)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil, report.Invalid("the archive has no %.80q", wanted)
		}
		if err != nil {
			return nil, nil, report.Invalid("the archive is broken: %v", err)
		}
		isLink := header.Typeflag == tar.TypeSymlink || header.Typeflag == tar.TypeLink
		if path.Clean(header.Name) == wanted && (isLink || header.Typeflag == tar.TypeReg) {
			return header, reader, nil
		}
	}
}

type archived struct {
	io.Reader
	io.Closer
}
