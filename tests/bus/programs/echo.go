// echo serve | ask PORT COUNT PAUSE_MS: numbers, checked, until a line comes.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	for {
		conn, err := listener.Accept()
		check(err)
		go func() {
			data := make([]byte, 4096)
			for {
				n, err := conn.Read(data)
				if err != nil {
					return
				}
				if _, err := conn.Write(data[:n]); err != nil {
					return
				}
			}
		}()
	}
}

func ask(port string, number int, pause time.Duration, ending *int32, asked *int64) {
	conn, err := net.Dial("tcp", "127.0.0.1:"+port)
	check(err)
	defer conn.Close()
	for round := 0; atomic.LoadInt32(ending) == 0; round++ {
		wanted := make([]byte, []int{8, 64, 704, 5000}[round%4])
		for at := 0; at+8 <= len(wanted); at += 8 {
			binary.BigEndian.PutUint32(wanted[at:], uint32(round))
			binary.BigEndian.PutUint32(wanted[at+4:], uint32(at+number))
		}
		_, err := conn.Write(wanted)
		check(err)
		found := make([]byte, len(wanted))
		_, err = io.ReadFull(conn, found)
		check(err)
		if !bytes.Equal(found, wanted) {
			check(fmt.Errorf("wrong bytes"))
		}
		atomic.AddInt64(asked, 1)
		time.Sleep(pause)
	}
}

func main() {
	if os.Args[1] == "serve" {
		serve()
	}
	count, err := strconv.Atoi(os.Args[3])
	check(err)
	pause, err := strconv.Atoi(os.Args[4])
	check(err)
	var ending int32
	var asked int64
	var group sync.WaitGroup
	for i := 0; i < count; i++ {
		group.Add(1)
		go func(number int) {
			defer group.Done()
			ask(os.Args[2], number, time.Duration(pause)*time.Millisecond, &ending, &asked)
		}(i)
	}
	os.Stdin.Read(make([]byte, 1))
	atomic.StoreInt32(&ending, 1)
	group.Wait()
	fmt.Println(asked)
}
