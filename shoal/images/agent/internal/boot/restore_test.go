package boot

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestASeveredConnectionIsClosed(t *testing.T) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := os.NewFile(uintptr(pair[0]), "relay")
	ended := make(chan struct{})
	go func() {
		closeWhenSevered(conn)
		close(ended)
	}()
	select {
	case <-ended:
		t.Fatal("it was closed while the relay was there")
	case <-time.After(2 * severedInterval):
	}
	syscall.Close(pair[1])
	<-ended
	if err := conn.Close(); err == nil {
		t.Fatal("it is still open")
	}
}

func TestASecretIsTakenWhereThereIsOne(t *testing.T) {
	directory := t.TempDir()
	restored := 0
	p := &parker{
		socket: filepath.Join(directory, "relay.sock"), secret: []byte("old"), restored: func() { restored++ },
		unreached: func() {},
	}
	p.refreshSecret()
	if string(p.secret) != "old" || restored != 0 {
		t.Fatal("the secret is gone with its file")
	}
	secret := make([]byte, secretSize)
	if err := os.WriteFile(filepath.Join(directory, secretName), secret, 0o444); err != nil {
		t.Fatal(err)
	}
	p.refreshSecret()
	p.refreshSecret()
	if string(p.secret) != string(secret) || restored != 1 {
		t.Fatal("it is not the new container's")
	}
}
