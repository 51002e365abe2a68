package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// datagramTimeout is for one attempt.
const datagramTimeout = 2 * time.Second

// datagram sends a text and prints the answer. Three attempts: datagrams get lost.
func datagram(_ context.Context, arguments []string) error {
	if len(arguments) != 2 {
		return errors.New("ADDRESS and TEXT are wanted")
	}
	socket, err := net.Dial("udp", arguments[0])
	if err != nil {
		return err
	}
	defer socket.Close()
	answer := make([]byte, 65536)
	for range 3 {
		if _, err = socket.Write([]byte(arguments[1])); err != nil {
			return err
		}
		if err = socket.SetReadDeadline(time.Now().Add(datagramTimeout)); err != nil {
			return err
		}
		var size int
		if size, err = socket.Read(answer); err == nil {
			fmt.Println(string(answer[:size]))
			return nil
		}
	}
	return err
}
