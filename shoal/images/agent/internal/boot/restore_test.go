package boot

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestASeveredConnectionIsClosed(t *testing.T) {
	told := filepath.Join(t.TempDir(), "snapshot")
	if err := syscall.Mkfifo(told, 0o600); err != nil {
		t.Fatal(err)
	}
	writer, err := os.OpenFile(told, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	var conns connections
	var pairs [2][2]int
	for i := range pairs {
		if pairs[i], err = syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		conns.add(os.NewFile(uintptr(pairs[i][0]), "relay"))
	}
	defer syscall.Close(pairs[1][1])
	go conns.closeSevered(told)
	syscall.Close(pairs[0][1])
	time.Sleep(2 * severedInterval)
	if left(&conns) != 2 {
		t.Fatal("it was closed before anybody told of a snapshot")
	}
	if _, err := writer.WriteString("restore\n"); err != nil {
		t.Fatal(err)
	}
	for left(&conns) == 2 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(2 * severedInterval)
	if left(&conns) != 1 {
		t.Fatal("one that is whole was closed")
	}
}

func TestASeveredConnectionIsClosedWhereNobodyTellsOfSnapshots(t *testing.T) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns connections
	conn := os.NewFile(uintptr(pair[0]), "relay")
	conns.add(conn)
	go conns.closeSevered("/nowhere")
	syscall.Close(pair[1])
	for left(&conns) == 1 {
		time.Sleep(time.Millisecond)
	}
	if err := conn.Close(); err == nil {
		t.Fatal("it is still open")
	}
}

func left(conns *connections) int {
	conns.mu.Lock()
	defer conns.mu.Unlock()
	return len(conns.open)
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
