// A gRPC client as Go programs have it, for the authorities that only they send: the stock client of
// this system reaches agents and managers through port-forwards, whose targets are no host names.
// Messages are bytes: no generated code is needed.
//
//	client ADDRESS METHOD unary|stream TARGET [AUTHORITY]
//	client load ADDRESS...
//
// Connects to ADDRESS, calls METHOD with the message on standard input, and prints the bytes of the
// first answer in hexadecimal; `error: …` if there is none. The second form keeps a channel to each
// ADDRESS and makes the calls that it is told, see load.go.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const timeout = 10 * time.Second

type raw struct{}

func (raw) Name() string                  { return "proto" }
func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "load" {
		if err := load(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		return
	}
	answer, err := run(os.Args[1:])
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Printf("%x\n", answer)
}

func run(args []string) ([]byte, error) {
	if len(args) < 4 {
		return nil, fmt.Errorf("usage: client ADDRESS METHOD unary|stream TARGET [AUTHORITY]")
	}
	address, method, form, target := args[0], args[1], args[2], args[3]
	request, err := io.ReadAll(os.Stdin)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		if path, isUnix := strings.CutPrefix(address, "unix:"); isUnix {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})),
	}
	if len(args) > 4 {
		options = append(options, grpc.WithAuthority(args[4]))
	}
	client, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var answer []byte
	if form == "unary" {
		return answer, client.Invoke(ctx, method, &request, &answer)
	}
	stream, err := client.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(&request); err != nil {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	return answer, stream.RecvMsg(&answer)
}
