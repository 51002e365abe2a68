// Command app is what the pods of the cluster tests run: a server that says who it is, a steady
// load that counts the answers, an admission webhook, and the pause container.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `usage: app VERB [OPTION...]
  pause                       waits for the end of the pod
  serve NAME                  answers HTTP/1.1, HTTP/2 and UDP, and says who did
  load URL                    sends requests at a steady rate; prints what was answered
  datagram ADDRESS TEXT       sends a datagram and prints the answer
  hook                        admission webhook that annotates the pods it is asked about
app VERB -h lists the options.`

// verb runs until it is done or stopped.
type verb func(stop context.Context, arguments []string) error

var verbs = map[string]verb{
	"datagram": datagram,
	"hook":     hook,
	"load":     load,
	"pause":    pause,
	"serve":    serve,
}

func main() {
	name, arguments := "pause", os.Args[1:]
	if len(arguments) > 0 {
		name, arguments = arguments[0], arguments[1:]
	}
	run, known := verbs[name]
	if !known {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(64)
	}
	stop, forget := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer forget()
	if err := run(stop, arguments); err != nil {
		fmt.Fprintf(os.Stderr, "app %s: %v\n", name, err)
		os.Exit(1)
	}
}

func pause(stop context.Context, _ []string) error {
	<-stop.Done()
	return nil
}

// parse splits the one leading argument from the options. The flag package stops at the first word
// that is no option, so the options come after it.
func parse(flags *flag.FlagSet, arguments []string, what string) (string, error) {
	if len(arguments) == 0 {
		return "", fmt.Errorf("%s is missing", what)
	}
	return arguments[0], flags.Parse(arguments[1:])
}
