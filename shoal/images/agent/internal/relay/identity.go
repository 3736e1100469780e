package relay

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"time"
)

// identity is what the relay proves to its clients by TLS: a key and a certificate that no authority signed. Clients
// know the certificate's fingerprint from their cluster. It follows from the cluster's secret and the relay's address,
// so a relay that was restarted is still the one that clients know, and no key lies in a file. Whoever knows the secret
// can sign every token anyway; what was sent before stays secret, as TLS 1.3 makes new keys for each connection.
type identity struct {
	config      *tls.Config
	fingerprint string // SHA-256 of the certificate in hexadecimal
}

// newIdentity returns that of the relay on a host.
func newIdentity(secret []byte, host string) (*identity, error) {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("relay certificate " + host))
	key := ed25519.NewKeyFromSeed(mac.Sum(nil))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "shoal relay"},
		NotBefore:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280: it does not expire
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(certificate)
	config := &tls.Config{
		Certificates:           []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}},
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true, // clients keep their connections
	}
	return &identity{config, hex.EncodeToString(digest[:])}, nil
}
