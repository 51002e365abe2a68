package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
)

// A call to be made: a line of JSON on standard input.
type order struct {
	ID      uint64
	Channel int
	Method  string
	// Values of x-dev; none if it is empty.
	Dev  string
	Size int
}

// How it ended: a line of JSON on standard output, and a last one without ID.
type result struct {
	ID         uint64 `json:"id"`
	By         string `json:"by"`
	Connection string `json:"connection"`
	Size       int    `json:"size"`
	Error      string `json:"error"`
	// Connections of all channels, and calls that were given back unsent and sent again.
	Connections int64 `json:"connections"`
	Unsent      int64 `json:"unsent"`
}

// Counts what a channel does without a word to its user.
type watcher struct{ connections, unsent atomic.Int64 }

func (*watcher) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (*watcher) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (w *watcher) HandleRPC(_ context.Context, event stats.RPCStats) {
	if begin, ok := event.(*stats.Begin); ok && begin.IsTransparentRetryAttempt {
		w.unsent.Add(1)
	}
}
func (w *watcher) HandleConn(_ context.Context, event stats.ConnStats) {
	if _, ok := event.(*stats.ConnBegin); ok {
		w.connections.Add(1)
	}
}

// Makes the calls of standard input side by side, each on the channel to the address that it names
// by number.
func load(addresses []string) error {
	seen := new(watcher)
	var channels []*grpc.ClientConn
	for _, address := range addresses {
		dial := func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
		channel, err := grpc.NewClient("passthrough:///app.example",
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(dial),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})),
			grpc.WithStatsHandler(seen))
		if err != nil {
			return err
		}
		defer channel.Close()
		channels = append(channels, channel)
	}
	results, written := make(chan result), make(chan error)
	go func() { written <- write(results) }()
	var calls sync.WaitGroup
	orders := json.NewDecoder(bufio.NewReader(os.Stdin))
	for {
		var next order
		err := orders.Decode(&next)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		calls.Add(1)
		go func() {
			defer calls.Done()
			results <- next.call(channels[next.Channel])
		}()
	}
	calls.Wait()
	results <- result{Connections: seen.connections.Load(), Unsent: seen.unsent.Load()}
	close(results)
	return <-written
}

func (o order) call(channel *grpc.ClientConn) result {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if o.Dev != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-dev", o.Dev)
	}
	var head metadata.MD
	var answer []byte
	request := make([]byte, o.Size)
	if err := channel.Invoke(ctx, o.Method, &request, &answer, grpc.Header(&head)); err != nil {
		return result{ID: o.ID, Error: err.Error()}
	}
	first := func(name string) string { return fmt.Sprint(append(head.Get(name), "")[0]) }
	return result{ID: o.ID, By: first("x-answered-by"), Connection: first("x-connection"), Size: len(answer)}
}

func write(results <-chan result) error {
	out := json.NewEncoder(os.Stdout)
	for result := range results {
		if err := out.Encode(result); err != nil {
			return err
		}
	}
	return nil
}
