package gateway

import (
	"crypto/tls"
	"log"
	"os"
	"sync"
	"time"
)

// certificateLook is how often the files are looked at, at the most: when a client comes.
const certificateLook = time.Second

// certificate is a pair of PEM files, read again when they change. A new pair that cannot be read leaves the old one in use.
type certificate struct {
	certPath, keyPath string

	mu       sync.Mutex
	pair     *tls.Certificate
	version  [2]fileVersion
	lookedAt time.Time
}

type fileVersion struct {
	modified time.Time
	size     int64
}

func loadCertificate(certPath, keyPath string) (*certificate, error) {
	c := &certificate{certPath: certPath, keyPath: keyPath}
	pair, err := tls.LoadX509KeyPair(certPath, keyPath)
	if err != nil {
		return nil, err
	}
	c.pair, c.version, c.lookedAt = &pair, c.versions(), time.Now()
	return c, nil
}

func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.lookedAt) >= certificateLook {
		c.lookedAt = now
		c.reload()
	}
	return c.pair, nil
}

func (c *certificate) reload() {
	version := c.versions()
	if version == c.version {
		return
	}
	c.version = version // told once for each change
	pair, err := tls.LoadX509KeyPair(c.certPath, c.keyPath)
	if err != nil {
		log.Printf("gateway: the new certificate is of no use, the old one stays: %v", err)
		return
	}
	c.pair = &pair
	log.Printf("gateway: a new certificate is in use")
}

func (c *certificate) versions() (versions [2]fileVersion) {
	for i, path := range [2]string{c.certPath, c.keyPath} {
		if file, err := os.Stat(path); err == nil {
			versions[i] = fileVersion{file.ModTime(), file.Size()}
		}
	}
	return versions
}
