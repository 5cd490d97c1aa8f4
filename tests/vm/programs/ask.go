// ask ADDRESS CONNECTIONS [LOCAL-PORT]: asks redis on so many connections and compares every byte of
// each answer, until SIGTERM. It prints each second how many connections it has made, and how many
// answers were right. A wrong answer, or none within two minutes, ends it with status 1; a connection
// that is closed is made anew, and counts.
//
// Programs in Go poll before they sleep, so that their connections are accelerated by default.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	patience = 2 * time.Minute
	pause    = 20 * time.Millisecond
)

var (
	sizes         = []int{1, 64, 1000, 4096, 30000}
	made, answers atomic.Int64
)

func payload(connection, number int) []byte {
	data := make([]byte, sizes[number%len(sizes)])
	for i := range data {
		// without a period that is a power of two
		data[i] = byte(' ' + (connection*7+number*31+i*13)%89)
	}
	return data
}

func exchange(conn net.Conn, connection, number int) error {
	bulk := fmt.Appendf(nil, "$%d\r\n%s\r\n", sizes[number%len(sizes)], payload(connection, number))
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(append([]byte("*2\r\n$4\r\nECHO\r\n"), bulk...)); err != nil {
		return err
	}
	answer := make([]byte, len(bulk))
	count, err := io.ReadFull(conn, answer)
	if !bytes.Equal(answer[:count], bulk[:count]) {
		log.Fatalf("connection %d: wrong answer %d", connection, number)
	}
	return err
}

func ask(dialer *net.Dialer, address string, connection int) {
	number := 0
	for {
		conn, err := dialer.Dial("tcp", address)
		if err == nil {
			made.Add(1)
			for ; err == nil; number++ {
				if err = exchange(conn, connection, number); err == nil {
					answers.Add(1)
					time.Sleep(pause)
				}
			}
			conn.Close()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			log.Fatalf("connection %d: no answer", connection)
		}
		log.Printf("connection %d: %v", connection, err)
		time.Sleep(time.Second)
	}
}

func main() {
	log.SetFlags(0)
	connections, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	dialer := &net.Dialer{Timeout: patience}
	if len(os.Args) > 3 {
		port, err := strconv.Atoi(os.Args[3])
		if err != nil {
			log.Fatal(err)
		}
		dialer.LocalAddr = &net.TCPAddr{Port: port}
	}
	for connection := 0; connection < connections; connection++ {
		go ask(dialer, os.Args[1], connection)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	for {
		select {
		case <-ended:
			return
		case <-time.After(time.Second):
			fmt.Printf("%d connections, %d answers\n", made.Load(), answers.Load())
		}
	}
}
