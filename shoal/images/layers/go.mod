module shoal/layers

go 1.25.0

require (
	github.com/klauspost/compress v1.18.2
	github.com/vbatts/tar-split v0.12.3
	golang.org/x/sys v0.39.0
)
