package command

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"

	"shoal/layers/internal/layer"
	"shoal/layers/internal/pack"
	"shoal/layers/internal/report"
	"shoal/layers/internal/stream"
	"shoal/layers/internal/unpack"
)

type commitRequest struct {
	Upper   string        `json:"upper"`   // the directory that overlayfs wrote to
	Into    string        `json:"into"`    // a directory that is there
	Exclude []string      `json:"exclude"` // names that are left out with all below: what the node itself put there
	Bounds  unpack.Bounds `json:"bounds"`
}

type commitResult struct {
	layer.Result
	Skipped int64 `json:"skipped"`
}

// commitUpper makes a layer's directory out of what a container has changed.
func commitUpper(j job) (any, error) {
	var request commitRequest
	if err := j.read(&request); err != nil {
		return nil, err
	}
	bounds := boundsOr(request.Bounds)
	options := pack.Options{Bytes: bounds.Bytes, Entries: bounds.Entries, Exclude: request.Exclude}
	result, skipped, err := layer.Commit(
		request.Upper, request.Into, options, bounds, j.reporter.Progress, j.reporter.Copied,
	)
	return commitResult{result, skipped}, err
}

type exportRequest struct {
	Layer       string             `json:"layer"`   // a layer's directory
	DiffID      string             `json:"diff_id"` // which the archive must have
	Output      string             `json:"output"`  // a file that is not there
	Compression stream.Compression `json:"compression"`
}

type exportResult struct {
	Digest string `json:"digest"` // of the file
	Size   int64  `json:"size"`
}

// exportLayer writes a layer's archive to a file.
func exportLayer(j job) (any, error) {
	var request exportRequest
	if err := j.read(&request); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(request.Output, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	blob := &counter{out: file}
	digest := sha256.New()
	if err := writeLayer(request, io.MultiWriter(blob, digest), j.reporter); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return exportResult{"sha256:" + hex.EncodeToString(digest.Sum(nil)), blob.bytes}, file.Close()
}

func writeLayer(request exportRequest, out io.Writer, reporter *report.Reporter) error {
	compressed, err := stream.Compressor(out, request.Compression)
	if err != nil {
		return err
	}
	archive := &counter{out: compressed, progress: reporter.Progress}
	if err := layer.Pack(request.Layer, request.DiffID, archive); err != nil {
		return err
	}
	return compressed.Close()
}

type counter struct {
	out      io.Writer
	bytes    int64
	progress func(bytes, entries int64)
}

func (c *counter) Write(data []byte) (int, error) {
	n, err := c.out.Write(data)
	c.bytes += int64(n)
	if c.progress != nil {
		c.progress(c.bytes, 0)
	}
	return n, err
}
