// Every case of h2spec against one server, many at a time, and a server of Go's standard library to
// try them on.
//
//	h2spec run ADDRESS   prints `CASE<TAB>VERDICT<TAB>what was seen` for each
//	h2spec serve         prints its address and serves
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

const (
	// How long a case waits for what it expects, or for a silence that it expects.
	caseTimeout = 2 * time.Second
	// Most of them wait for silence, so many can run at a time.
	casesAtATime = 64
	answerDelay  = 50 * time.Millisecond
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "run":
		err = run(os.Args[2])
	case len(os.Args) == 2 && os.Args[1] == "serve":
		err = serve()
	default:
		err = fmt.Errorf("usage: h2spec run ADDRESS | h2spec serve")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

type job struct {
	id   string
	test *spec.TestCase
}

func run(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	target := config.Config{Host: host, Port: number, Path: "/", Timeout: caseTimeout, MaxHeaderLen: 4000, Strict: true}
	var jobs []job
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		jobs = collect(group, jobs)
	}
	lines := make([]string, len(jobs))
	var workers sync.WaitGroup
	places := make(chan struct{}, casesAtATime)
	for i, job := range jobs {
		places <- struct{}{}
		workers.Add(1)
		go func() {
			defer workers.Done()
			lines[i] = job.id + "\t" + verdict(job.test, target)
			<-places
		}()
	}
	workers.Wait()
	fmt.Println(strings.Join(lines, "\n"))
	return nil
}

func collect(group *spec.TestGroup, jobs []job) []job {
	for i, test := range append(group.Tests, group.StrictTests...) {
		jobs = append(jobs, job{fmt.Sprintf("%s/%d", group.ID(), i+1), test})
	}
	for _, below := range group.Groups {
		jobs = collect(below, jobs)
	}
	return jobs
}

func verdict(test *spec.TestCase, target config.Config) (said string) {
	// Some cases fall over when the connection ends before anything was said.
	defer func() {
		if reason := recover(); reason != nil {
			said = fmt.Sprintf("failed\t%v", reason)
		}
	}()
	conn, err := spec.Dial(&target)
	if err != nil {
		return fmt.Sprintf("failed\t%v", err)
	}
	defer conn.Close()
	switch err := test.Run(&target, conn).(type) {
	case nil:
		return "passed\t"
	case *spec.TestError:
		return "failed\t" + err.Actual
	default:
		if err == spec.ErrSkipped {
			return "skipped\t"
		}
		return fmt.Sprintf("failed\t%v", err)
	}
}

// Writes fields in an order that is always the same.
func list(to io.Writer, fields http.Header) {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(to, "%s: %q\n", name, fields[name])
	}
}

// Serves what says which request has arrived.
func serve() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	handler := http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		body, failed := io.ReadAll(request.Body)
		// What a case sends behind its request comes before the answer, not beside it.
		time.Sleep(answerDelay)
		fmt.Fprintf(answer, "%s %q %q\n", request.Method, request.RequestURI, request.Host)
		list(answer, request.Header)
		fmt.Fprintf(answer, "%d bytes, %v\n", len(body), failed)
		list(answer, request.Trailer)
	})
	server := http.Server{Handler: handler, Protocols: protocols, ErrorLog: log.New(io.Discard, "", 0)}
	return server.Serve(listener)
}
