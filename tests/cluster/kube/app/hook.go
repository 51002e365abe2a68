package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"slices"
)

// review is the part of an AdmissionReview (admission.k8s.io/v1) that the webhook reads or writes.
type review struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Request    *question `json:"request,omitempty"`
	Response   *verdict  `json:"response,omitempty"`
}

type question struct {
	UID    string `json:"uid"`
	Object struct {
		Metadata struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
		Spec struct {
			InitContainers []container `json:"initContainers"`
			Containers     []container `json:"containers"`
		} `json:"spec"`
	} `json:"object"`
}

type container struct {
	Env []variable `json:"env"`
}

type variable struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type verdict struct {
	UID       string `json:"uid"`
	Allowed   bool   `json:"allowed"`
	PatchType string `json:"patchType"`
	Patch     []byte `json:"patch"`
}

type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// hook admits every pod, with the annotation rig/hooked on it and, where it is told to, a variable
// in each of its containers.
func hook(stop context.Context, arguments []string) error {
	flags := flag.NewFlagSet("hook", flag.ContinueOnError)
	address := flags.String("https", ":8443", "address to listen on")
	cert := flags.String("cert", "/tls/tls.crt", "PEM file of the certificate")
	key := flags.String("key", "/tls/tls.key", "PEM file of its key")
	value := flags.String("value", "yes", "of the annotation")
	name := flags.String("env", "", "name of a variable that every container gets, with the same value")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	server := &http.Server{Addr: *address, Handler: http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			asked := review{}
			if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || asked.Request == nil {
				http.Error(w, fmt.Sprint("no AdmissionReview: ", err), http.StatusBadRequest)
				return
			}
			w.Header().Set("content-type", "application/json")
			_ = json.NewEncoder(w).Encode(annotate(asked, *value, *name))
		})}
	context.AfterFunc(stop, func() { server.Close() })
	err := server.ListenAndServeTLS(*cert, *key)
	if stop.Err() != nil {
		return nil
	}
	return err
}

// withVariable adds a variable to containers that lack it.
func withVariable(path string, containers []container, added variable) (patch []operation) {
	for number, one := range containers {
		has := slices.ContainsFunc(one.Env, func(it variable) bool { return it.Name == added.Name })
		place := fmt.Sprintf("%s/%d/env", path, number)
		switch {
		case has:
		case one.Env == nil:
			patch = append(patch, operation{"add", place, []variable{added}})
		default:
			patch = append(patch, operation{"add", place + "/-", added})
		}
	}
	return patch
}

func annotate(asked review, value, name string) review {
	patch := []operation{{"add", "/metadata/annotations/rig~1hooked", value}}
	if asked.Request.Object.Metadata.Annotations == nil {
		patch = []operation{{"add", "/metadata/annotations", map[string]string{"rig/hooked": value}}}
	}
	if name != "" {
		spec, added := asked.Request.Object.Spec, variable{name, value}
		patch = append(patch, withVariable("/spec/initContainers", spec.InitContainers, added)...)
		patch = append(patch, withVariable("/spec/containers", spec.Containers, added)...)
	}
	// Strings in structs of our own: this can't fail.
	encoded, _ := json.Marshal(patch)
	answer := verdict{asked.Request.UID, true, "JSONPatch", encoded}
	return review{APIVersion: asked.APIVersion, Kind: asked.Kind, Response: &answer}
}
