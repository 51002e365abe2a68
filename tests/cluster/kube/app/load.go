package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// maxFailedBegins bounds the line that is printed each second.
const maxFailedBegins = 200

// tally is what came of the requests so far.
type tally struct {
	mutex sync.Mutex
	// Sent counts requests that have ended, one way or the other.
	Sent int `json:"sent"`
	// Answers by who gave them: the header x-answered-by of a good answer.
	Answers map[string]int `json:"answers"`
	// Failures by their text: no answer, or one that is not 200.
	Failures map[string]int `json:"failures"`
	// FailedBegins are the times at which the first failed ones began, milliseconds since 1970.
	FailedBegins []int64 `json:"failed_begins"`
	// SlowestMS is the longest time from a request to its whole answer.
	SlowestMS int64 `json:"slowest_ms"`
	// Done is set in the last line.
	Done bool `json:"done"`
}

func (t *tally) count(by string, err error, begin time.Time) {
	took := time.Since(begin)
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.Sent++
	t.SlowestMS = max(t.SlowestMS, took.Milliseconds())
	if err != nil {
		t.Failures[err.Error()]++
		if len(t.FailedBegins) < maxFailedBegins {
			t.FailedBegins = append(t.FailedBegins, begin.UnixMilli())
		}
		return
	}
	t.Answers[by]++
}

// print writes one line, which says all that was counted since the start.
func (t *tally) print() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(t)
}

// load sends requests at a steady rate, late answers or not, and prints the tally each second and
// at the end.
func load(stop context.Context, arguments []string) error {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	rate := flags.Int("rate", 100, "requests in a second")
	duration := flags.Duration("for", 0, "how long; until told to stop when 0")
	timeout := flags.Duration("timeout", 30*time.Second, "of one request")
	fresh := flags.Bool("fresh", false, "a new connection for each request")
	http2 := flags.Bool("http2", false, "HTTP/2, in clear text where the URL says http")
	headers := http.Header{}
	flags.Func("header", "NAME=VALUE; may repeat", func(text string) error {
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return fmt.Errorf("%q has no NAME=VALUE", text)
		}
		headers.Add(name, value)
		return nil
	})
	url, err := parse(flags, arguments, "URL")
	if err != nil {
		return err
	}
	if *duration > 0 {
		var cancel context.CancelFunc
		stop, cancel = context.WithTimeout(stop, *duration)
		defer cancel()
	}
	client := &http.Client{Timeout: *timeout, Transport: transport(*fresh, *http2)}
	total := &tally{Answers: map[string]int{}, Failures: map[string]int{}, FailedBegins: []int64{}}
	var open sync.WaitGroup
	next := time.NewTicker(time.Second / time.Duration(*rate))
	report := time.NewTicker(time.Second)
	for stop.Err() == nil {
		select {
		case <-stop.Done():
		case <-report.C:
			total.print()
		case <-next.C:
			open.Go(func() {
				begin := time.Now()
				by, err := request(client, url, headers)
				total.count(by, err, begin)
			})
		}
	}
	open.Wait()
	total.Done = true
	total.print()
	return nil
}

func transport(fresh, http2 bool) *http.Transport {
	t := &http.Transport{DisableKeepAlives: fresh, MaxIdleConnsPerHost: 100}
	if http2 {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP2(true)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	return t
}

// request is one exchange: its answer's x-answered-by, or an error that says what was wrong.
func request(client *http.Client, url string, headers http.Header) (string, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	request.Header = headers.Clone()
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %.200s", answer.Status, body)
	}
	return answer.Header.Get("x-answered-by"), nil
}
