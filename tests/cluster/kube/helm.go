//go:build tools

package main

// Helm is built from this module too, so that the two share nearly all of their packages.
import _ "helm.sh/helm/v3/cmd/helm"
