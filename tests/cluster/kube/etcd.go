package main

import (
	"context"
	"errors"
	"net/url"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// etcdCommand is the store of one API server: a single member on loopback that never syncs its
// files, since a cluster of tests is thrown away with its machine.
func etcdCommand() *cobra.Command {
	var folder, listen, peer string
	command := &cobra.Command{
		Use:  "etcd",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			config, err := etcdConfig(folder, listen, peer)
			if err != nil {
				return err
			}
			stop, forget := signal.NotifyContext(command.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer forget()
			return serveEtcd(stop, config)
		},
	}
	flags := command.Flags()
	flags.StringVar(&folder, "folder", "", "folder of the data")
	flags.StringVar(&listen, "listen", "http://127.0.0.1:2379", "URL for the API server")
	flags.StringVar(&peer, "peer", "http://127.0.0.1:2380", "URL for other members")
	command.SetContext(context.Background())
	return command
}

func etcdConfig(folder, listen, peer string) (*embed.Config, error) {
	client, clientErr := url.Parse(listen)
	member, memberErr := url.Parse(peer)
	if err := errors.Join(clientErr, memberErr); err != nil {
		return nil, err
	}
	config := embed.NewConfig()
	config.Dir = folder
	config.LogLevel = "warn"
	config.UnsafeNoFsync = true
	config.ListenClientUrls = []url.URL{*client}
	config.AdvertiseClientUrls = config.ListenClientUrls
	config.ListenPeerUrls = []url.URL{*member}
	config.AdvertisePeerUrls = config.ListenPeerUrls
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	return config, nil
}

func serveEtcd(stop context.Context, config *embed.Config) error {
	server, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer server.Close()
	select {
	case <-stop.Done():
		return nil
	case err := <-server.Err():
		return err
	}
}
