package command

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"os"

	"shoal/layers/internal/layer"
	"shoal/layers/internal/report"
	"shoal/layers/internal/stream"
	"shoal/layers/internal/unpack"
)

type unpackRequest struct {
	Archive string        `json:"archive"` // a file, compressed or not
	Into    string        `json:"into"`    // a directory that is there
	DiffID  string        `json:"diff_id"` // as promised; "": none is
	Digest  string        `json:"digest"`  // of the file, as promised; "": none is
	Bounds  unpack.Bounds `json:"bounds"`
}

// unpackArchive makes a layer's directory out of a file.
func unpackArchive(j job) (any, error) {
	var request unpackRequest
	if err := j.read(&request); err != nil {
		return nil, err
	}
	file, err := os.Open(request.Archive)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, report.Invalid("the archive cannot be read: %v", err)
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	blob := stream.NewMeter(file, math.MaxInt64)
	archive, err := stream.Decompress(blob)
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	result, err := layer.Unpack(archive, request.Into, request.DiffID, boundsOr(request.Bounds), j.reporter.Progress)
	if err != nil || request.Digest == "" {
		return result, err
	}
	if _, err := io.Copy(io.Discard, blob); err != nil {
		return nil, err
	}
	return result, blob.Check(request.Digest, "the file")
}
