package command

import (
	"io"

	"shoal/layers/internal/layer"
	"shoal/layers/internal/source"
	"shoal/layers/internal/stream"
	"shoal/layers/internal/unpack"
)

type inspectRequest struct {
	Source source.Where `json:"source"`
}

// inspectImage tells what an image consists of.
func inspectImage(j job) (any, error) {
	var request inspectRequest
	if err := j.read(&request); err != nil {
		return nil, err
	}
	return source.Inspect(request.Source)
}

type fetchRequest struct {
	Source source.Where  `json:"source"`
	Layer  source.Layer  `json:"layer"` // as `inspect` gave it
	DiffID string        `json:"diff_id"`
	Into   string        `json:"into"` // a directory that is there
	Bounds unpack.Bounds `json:"bounds"`
}

// fetchLayer makes a layer's directory out of an image's source.
func fetchLayer(j job) (any, error) {
	var request fetchRequest
	if err := j.read(&request); err != nil {
		return nil, err
	}
	opened, err := source.Open(request.Source, request.Layer)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	bounds := boundsOr(request.Bounds)
	blob := stream.NewMeter(opened, sizeBound(request, bounds))
	archive, err := stream.Decompress(blob)
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	result, err := layer.Unpack(archive, request.Into, request.DiffID, bounds, j.reporter.Progress)
	if err != nil {
		return nil, err
	}
	// The diff id is right, so what was read is what the image means. What else there is would be for nobody.
	_, err = io.Copy(io.Discard, blob)
	return result, err
}

// sizeBound is what the manifest says of the layer. The layers of an archive come uncompressed, and are bounded as such.
func sizeBound(request fetchRequest, bounds unpack.Bounds) int64 {
	if request.Source.Kind == "registry" {
		return request.Layer.Size
	}
	return bounds.Bytes + bounds.Entries*1536
}

// mayPush tells whether a registry is there, and takes images from us.
func mayPush(j job) (any, error) {
	var request inspectRequest
	if err := j.read(&request); err != nil {
		return nil, err
	}
	return struct{}{}, source.MayPush(request.Source)
}

type pushRequest struct {
	Source source.Where  `json:"source"` // where it goes to
	Config []byte        `json:"config"`
	Layers []source.File `json:"layers"`
}

type pushResult struct {
	Digest string `json:"digest"` // of the manifest, by which the registry knows it
}

// pushImage sends an image to a registry.
func pushImage(j job) (any, error) {
	var request pushRequest
	if err := j.read(&request); err != nil {
		return nil, err
	}
	digest, err := source.Push(request.Source, request.Config, request.Layers)
	return pushResult{digest}, err
}
