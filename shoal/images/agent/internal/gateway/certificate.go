package gateway

import (
	"crypto/tls"
	"log"
	"os"
	"sync"
	"time"
)

// certificateCheckInterval is the least time between two checks of the files. They are checked when a client connects.
const certificateCheckInterval = time.Second

// certificate is a pair of PEM files, reloaded when they change. If the new pair cannot be loaded, the old one stays in
// use.
type certificate struct {
	certPath, keyPath string

	mu        sync.Mutex
	pair      *tls.Certificate
	version   [2]fileVersion
	checkedAt time.Time
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
	c.pair, c.version, c.checkedAt = &pair, c.versions(), time.Now()
	return c, nil
}

func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.checkedAt) >= certificateCheckInterval {
		c.checkedAt = now
		c.reload()
	}
	return c.pair, nil
}

func (c *certificate) reload() {
	version := c.versions()
	if version == c.version {
		return
	}
	c.version = version // also if loading fails: log the failure once for each change
	pair, err := tls.LoadX509KeyPair(c.certPath, c.keyPath)
	if err != nil {
		log.Printf("gateway: loading the new certificate failed, the old one stays in use: %v", err)
		return
	}
	c.pair = &pair
	log.Printf("gateway: loaded the new certificate")
}

func (c *certificate) versions() (versions [2]fileVersion) {
	for i, path := range [2]string{c.certPath, c.keyPath} {
		if file, err := os.Stat(path); err == nil {
			versions[i] = fileVersion{file.ModTime(), file.Size()}
		}
	}
	return versions
}
