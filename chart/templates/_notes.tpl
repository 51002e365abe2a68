{{/* The text after an install; a template of its own so that tests can render it without a cluster. */}}
{{- define "tm.notes" -}}
{{- if .Values.rbac.only -}}
Rights for a traffic-manager in namespace {{ include "tm.namespace" . }} are installed, and nothing else.
Install the rest with managerRbac.create=false and clientRbac.create=false.
{{- else -}}
The traffic-manager {{ .Chart.AppVersion }} is installed in namespace {{ include "tm.namespace" . }}.
{{- $managed := include "tm.managed" . | fromJsonArray }}
It manages {{ if $managed }}{{ join ", " $managed }}{{ else if .Values.namespaceSelector }}the namespaces that match namespaceSelector{{ else }}all namespaces{{ end }}.

    kubectl -n {{ include "tm.namespace" . }} rollout status deployment/traffic-manager
    intercept create WORKLOAD --http-header x-dev=me --port 3000{{ if ne (include "tm.namespace" .) "ambassador" }} --manager-namespace {{ include "tm.namespace" . }}{{ end }}
{{- if not .Values.agentInjector.enabled }}

The injector is off: agents are added by hand (intercept genyaml).
{{- else if eq .Values.agentInjector.injectPolicy "Never" }}

agentInjector.injectPolicy is Never: only workloads annotated telepresence.io/inject-traffic-agent: enabled get an agent.
{{- end }}
{{- if and .Values.agentInjector.enabled (eq (include "tm.certificateMethod" .) "helm") }}

The webhook's certificate was made by this command and is valid for a year; each upgrade makes a new one.
agentInjector.certificate.method=manager renews it by itself{{ if include "tm.isNamespaced" . }} (with managerRbac.clusterRole=true){{ end }}.
{{- end }}
{{- if eq .Values.image.name "tel2" }}

image.name is tel2: the stock manager runs, not ours. Leave image.* out, or set image.registry alone, for the images of this chart.
{{- end }}
{{- $ignored := .Files.Get "files/ignored.yaml" | fromYaml }}
{{- $set := list }}
{{- $values := .Values }}
{{- range $path, $reason := $ignored }}
{{- if include "tm.isSet" (dict "v" $values "path" $path) }}{{ $set = append $set (printf "    %s: %s" $path $reason) }}{{ end }}
{{- end }}
{{- if $set }}

These values are accepted for the sake of existing values files and have no effect:
{{ join "\n" $set }}
{{- end }}
{{- $unknown := include "tm.unknown" (dict "v" $values "known" (.Files.Get "files/known.yaml" | fromYaml) "ignored" $ignored "prefix" "") | trim }}
{{- if $unknown }}

These values are unknown to this chart and have no effect; look for a misspelling:
{{ $unknown | indent 4 }}
{{- end }}
{{- end }}
{{- end -}}
