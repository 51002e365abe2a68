package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"time"
)

// serve answers each request with the name given (header x-answered-by), the pod's name (x-pod) and
// the request as it came. Told to stop, it goes on for a while as a well-made app does: Services
// send requests until they have heard of the pod's end.
func serve(stop context.Context, arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	plain := flags.String("http", ":8080", "address for HTTP/1.1 and HTTP/2 in clear text; - for none")
	secure := flags.String("https", "", "address for TLS; wants -cert and -key")
	cert := flags.String("cert", "", "PEM file of the certificate")
	key := flags.String("key", "", "PEM file of its key")
	udp := flags.String("udp", "", "address whose datagrams are answered with NAME and the datagram")
	linger := flags.Duration("linger", 2*time.Second, "time between the signal and the last accept")
	name, err := parse(flags, arguments, "NAME")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: whoami(name), Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(true)
	server.Protocols.SetUnencryptedHTTP2(true)

	failed := make(chan error, 3)
	run := func(part func() error) { go func() { failed <- part() }() }
	if *plain != "-" {
		server.Addr = *plain
		run(server.ListenAndServe)
	}
	if *secure != "" {
		tls := &http.Server{Addr: *secure, Handler: server.Handler}
		run(func() error { return tls.ListenAndServeTLS(*cert, *key) })
	}
	if *udp != "" {
		run(func() error { return echo(*udp, name) })
	}
	select {
	case err := <-failed:
		return err
	case <-stop.Done():
	}
	time.Sleep(*linger)
	grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return server.Shutdown(grace)
}

func whoami(name string) http.Handler {
	pod, _ := os.Hostname()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		dump, err := httputil.DumpRequest(r, true)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("x-answered-by", name)
		w.Header().Set("x-pod", pod)
		w.Header().Set("x-peer", r.RemoteAddr)
		fmt.Fprintf(w, "%s in %s answers %s\n%s", name, pod, r.RemoteAddr, dump)
	})
}

func echo(address, name string) error {
	socket, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	datagram := make([]byte, 65536)
	for {
		size, peer, err := socket.ReadFrom(datagram)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err == nil {
			_, _ = socket.WriteTo(append([]byte(name+" "), datagram[:size]...), peer)
		}
	}
}
