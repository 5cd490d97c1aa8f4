// copy LISTEN REMOTE: a proxy such as Go programs are, with io.Copy between two TCP connections,
// which is splice(2) on Linux.
package main

import (
	"io"
	"log"
	"net"
	"os"
)

func stream(to, from *net.TCPConn, done chan<- bool) {
	if _, err := io.Copy(to, from); err != nil {
		log.Print(err)
		// as a connection that broke, not as one that ended
		to.SetLinger(0)
		to.Close()
	} else {
		to.CloseWrite()
	}
	done <- true
}

func serve(client *net.TCPConn, remote string) {
	defer client.Close()
	connection, err := net.Dial("tcp", remote)
	if err != nil {
		log.Print(err)
		return
	}
	server := connection.(*net.TCPConn)
	defer server.Close()
	done := make(chan bool)
	go stream(server, client, done)
	go stream(client, server, done)
	<-done
	<-done
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(client.(*net.TCPConn), os.Args[2])
	}
}
