package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	clusterZone = ".svc.cluster.local."
	recordTTL   = 5
)

// resolver answers for the Services of the cluster from watched objects. All other names do not
// exist: nothing is forwarded, so nothing leaves the machine.
type resolver struct {
	services corelisters.ServiceLister
	slices   discoverylisters.EndpointSliceLister
}

func dnsCommand() *cobra.Command {
	var kubeconfig, listen string
	command := &cobra.Command{
		Use:  "dns",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			stop, forget := signal.NotifyContext(command.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer forget()
			return serveDNS(stop, kubeconfig, listen)
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "file with the access to the API server")
	command.Flags().StringVar(&listen, "listen", "127.0.0.1:53", "address for UDP and TCP")
	command.SetContext(context.Background())
	return command
}

func serveDNS(stop context.Context, kubeconfig, listen string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	names := resolver{
		services: factory.Core().V1().Services().Lister(),
		slices:   factory.Discovery().V1().EndpointSlices().Lister(),
	}
	factory.Start(stop.Done())
	factory.WaitForCacheSync(stop.Done())

	udp, udpErr := net.ListenPacket("udp", listen)
	tcp, tcpErr := net.Listen("tcp", listen)
	if err := errors.Join(udpErr, tcpErr); err != nil {
		return err
	}
	context.AfterFunc(stop, func() {
		udp.Close()
		tcp.Close()
	})
	go names.serveTCP(tcp)
	return names.serveUDP(stop, udp)
}

func (r resolver) serveUDP(stop context.Context, socket net.PacketConn) error {
	query := make([]byte, 4096)
	for {
		size, peer, err := socket.ReadFrom(query)
		if stop.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if answer, ok := r.answer(query[:size]); ok {
			// A caller that went away asks again or not at all.
			_, _ = socket.WriteTo(answer, peer)
		}
	}
}

func (r resolver) serveTCP(listener net.Listener) {
	for {
		stream, err := listener.Accept()
		if err != nil {
			return
		}
		go r.exchanges(stream)
	}
}

// exchanges answers the queries of one connection, each of which follows its length.
func (r resolver) exchanges(stream net.Conn) {
	defer stream.Close()
	for {
		var length uint16
		if binary.Read(stream, binary.BigEndian, &length) != nil {
			return
		}
		query := make([]byte, length)
		if _, err := io.ReadFull(stream, query); err != nil {
			return
		}
		answer, ok := r.answer(query)
		if !ok {
			return
		}
		framed := binary.BigEndian.AppendUint16(nil, uint16(len(answer)))
		if _, err := stream.Write(append(framed, answer...)); err != nil {
			return
		}
	}
}

// answer is the reply to one query; false for bytes that are no query.
func (r resolver) answer(query []byte) ([]byte, bool) {
	var message dnsmessage.Message
	if message.Unpack(query) != nil || message.Response || len(message.Questions) != 1 {
		return nil, false
	}
	message.Response = true
	message.Authoritative = true
	message.Additionals = nil
	question := message.Questions[0]
	bodies, exists := r.records(question)
	if !exists {
		message.RCode = dnsmessage.RCodeNameError
	}
	for _, body := range bodies {
		header := dnsmessage.ResourceHeader{Name: question.Name, Class: question.Class, TTL: recordTTL}
		message.Answers = append(message.Answers, dnsmessage.Resource{Header: header, Body: body})
	}
	packed, err := message.Pack()
	return packed, err == nil
}

// records of a name, and whether the name exists at all: a name without records of the type asked
// for is no error.
func (r resolver) records(question dnsmessage.Question) ([]dnsmessage.ResourceBody, bool) {
	name, inside := strings.CutSuffix(strings.ToLower(question.Name.String()), clusterZone)
	path := strings.Split(name, ".")
	if !inside || len(path) < 2 {
		return nil, false
	}
	namespace, service := path[len(path)-1], path[len(path)-2]
	found, err := r.services.Services(namespace).Get(service)
	if err != nil {
		return nil, false
	}
	switch rest := path[:len(path)-2]; {
	case len(rest) == 0:
		return r.addresses(found, "", question.Type), true
	case len(rest) == 1:
		bodies := r.addresses(found, rest[0], question.Type)
		return bodies, len(bodies) > 0
	case len(rest) == 2 && question.Type == dnsmessage.TypeSRV:
		bodies := ports(found, rest[0], rest[1])
		return bodies, len(bodies) > 0
	default:
		return nil, false
	}
}

// addresses of a Service, or of its pods when it is headless or one of them is named.
func (r resolver) addresses(
	service *corev1.Service, hostname string, kind dnsmessage.Type,
) (bodies []dnsmessage.ResourceBody) {
	all := service.Spec.ClusterIPs
	if hostname != "" || service.Spec.ClusterIP == corev1.ClusterIPNone {
		all = r.pods(service, hostname)
	}
	for _, text := range all {
		ip := net.ParseIP(text)
		switch v4 := ip.To4(); {
		case kind == dnsmessage.TypeA && v4 != nil:
			bodies = append(bodies, &dnsmessage.AResource{A: [4]byte(v4)})
		case kind == dnsmessage.TypeAAAA && v4 == nil && ip != nil:
			bodies = append(bodies, &dnsmessage.AAAAResource{AAAA: [16]byte(ip.To16())})
		}
	}
	return bodies
}

func (r resolver) pods(service *corev1.Service, hostname string) (addresses []string) {
	chosen := labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: service.Name})
	// A lister reads memory: it has no error to give.
	slices, _ := r.slices.EndpointSlices(service.Namespace).List(chosen)
	for _, slice := range slices {
		for _, endpoint := range slice.Endpoints {
			ready := endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready
			ready = ready || service.Spec.PublishNotReadyAddresses
			named := endpoint.Hostname != nil && *endpoint.Hostname == hostname
			if ready && (hostname == "" || named) {
				addresses = append(addresses, endpoint.Addresses...)
			}
		}
	}
	return addresses
}

func ports(service *corev1.Service, name, protocol string) (bodies []dnsmessage.ResourceBody) {
	for _, port := range service.Spec.Ports {
		if name != "_"+port.Name || protocol != "_"+strings.ToLower(string(port.Protocol)) {
			continue
		}
		target, err := dnsmessage.NewName(service.Name + "." + service.Namespace + clusterZone)
		if err == nil {
			body := &dnsmessage.SRVResource{Weight: 100, Port: uint16(port.Port), Target: target}
			bodies = append(bodies, body)
		}
	}
	return bodies
}
