// A server in Go for the rows of tests/endings: HTTP on its first port, a TCP server that refuses
// everybody on its second, TLS that insists on a client's certificate on its third. With "tls
// ADDRESS ROUNDS" it is the caller of the third instead.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == "tls" {
		callTLS(os.Args[2], os.Args[3])
		return
	}
	web, plain, secure := listen(), listen(), listen()
	go refuseAll(plain)
	go serveTLS(secure)
	fmt.Printf("listening=%s %s %s\n", web.Addr(), plain.Addr(), secure.Addr())
	quiet := log.New(io.Discard, "", 0)
	log.Fatal((&http.Server{Handler: http.HandlerFunc(answer), ErrorLog: quiet}).Serve(web))
}

func listen() net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	return listener
}

// answer does what the path says; the time of day is left out, so that answers can be compared.
func answer(writer http.ResponseWriter, request *http.Request) {
	writer.Header()["Date"] = nil
	switch path := request.URL.Path; {
	case path == "/large":
		writer.Header().Set("Content-Length", "8000000")
		io.Copy(writer, io.LimitReader(forever{}, 8000000))
	case path == "/denied": // without reading the body
		http.Error(writer, "denied", http.StatusUnauthorized)
	case path == "/cut":
		io.Copy(writer, io.LimitReader(forever{}, 300000))
		panic(http.ErrAbortHandler)
	case path == "/hijacked":
		connection, _, err := http.NewResponseController(writer).Hijack()
		if err != nil {
			return
		}
		io.WriteString(connection, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nup to the end")
		connection.Close()
	default:
		length, _ := io.Copy(io.Discard, request.Body)
		fmt.Fprintf(writer, "read %d", length)
	}
}

type forever struct{}

func (forever) Read(into []byte) (int, error) {
	return copy(into, bytes.Repeat([]byte("x"), len(into))), nil
}

// refuseAll says why and closes without having read: what the caller sent makes that a reset.
func refuseAll(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			io.WriteString(connection, "-ERR max number of clients reached\r\n")
			connection.Close()
		}()
	}
}

func serveTLS(listener net.Listener) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotAfter:     time.Now().Add(time.Hour),
		DNSNames:     []string{"app.test"},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}},
		ClientAuth:   tls.RequireAnyClientCert,
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			tls.Server(connection, config).Handshake()
			connection.Close()
		}()
	}
}

// callTLS connects without a certificate, as often as told, and counts what it hears: in TLS 1.3
// the refusal comes behind the caller's last words of the handshake, and its data.
func callTLS(address, rounds string) {
	count, _ := strconv.Atoi(rounds)
	told := 0
	for range count {
		connection, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			io.WriteString(connection, strings.Repeat("data", 1000))
			_, err = connection.Read(make([]byte, 1))
			connection.Close()
		}
		var alert tls.AlertError
		if errors.As(err, &alert) || strings.Contains(fmt.Sprint(err), "certificate required") {
			told++
		}
	}
	fmt.Println(told)
}
