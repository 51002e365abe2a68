// Command kube is every program of a one-node Kubernetes in one file: its first argument names the
// part to run. The parts are the upstream commands as they are; only etcd and the cluster's DNS are
// put together here.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// part makes the command of one part. Only the part asked for is made: several of them register
// flags and metrics in global tables.
type part func() *cobra.Command

func parts() map[string]part {
	return map[string]part{
		"apiserver":          apiserver.NewAPIServerCommand,
		"controller-manager": controllermanager.NewControllerManagerCommand,
		"dns":                dnsCommand,
		"etcd":               etcdCommand,
		"kubectl":            func() *cobra.Command { return kubectl.NewDefaultKubectlCommand() },
		// The kubelet's command installs the signal handler itself, and a second one panics.
		"kubelet":   func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
		"proxy":     proxy.NewProxyCommand,
		"scheduler": func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	}
}

func main() {
	known := parts()
	if len(os.Args) < 2 || known[os.Args[1]] == nil {
		names := slices.Sorted(maps.Keys(known))
		fmt.Fprintf(os.Stderr, "usage: kube PART [ARGUMENT...]\nparts: %s\n", strings.Join(names, " "))
		os.Exit(64)
	}
	command := known[os.Args[1]]()
	os.Args = os.Args[1:]
	os.Exit(cli.Run(command))
}
