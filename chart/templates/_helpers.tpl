{{/* The namespace of everything; fixed for linting. */}}
{{- define "tm.namespace" -}}
{{- if .Values.isCI }}ambassador{{ else }}{{ .Release.Namespace }}{{ end -}}
{{- end -}}

{{/* Labels that select the manager's pods. */}}
{{- define "tm.selector" -}}
app: traffic-manager
telepresence: manager
{{- end -}}

{{- define "tm.labels" -}}
{{ include "tm.selector" . }}
app.kubernetes.io/name: traffic-manager
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/created-by: {{ .Values.createdBy | default .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of an object named by .name in the manager's namespace. */}}
{{- define "tm.metadata" -}}
name: {{ .name }}
namespace: {{ .namespace | default (include "tm.namespace" .root) }}
labels:
  {{- include "tm.labels" .root | nindent 2 }}
{{- end -}}

{{/* Image reference of the manager. */}}
{{- define "tm.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion | toString -}}
{{- with .Values.image.registry }}{{ . | trimSuffix "/" }}/{{ end -}}
{{- .Values.image.name }}:{{ $tag }}{{ with .Values.image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* The deprecated agentInjector.agentImage wins over agent.image; values files in the field rely on it. */}}
{{- define "tm.agentImage" -}}
{{- $old := .Values.agentInjector.agentImage | default dict -}}
{{- $new := .Values.agent.image | default dict -}}
{{- $tag := $old.tag | default $new.tag | default .Chart.AppVersion | toString -}}
{{- with $new.digest }}{{ $tag = printf "%s@%s" $tag . }}{{ end -}}
{{- dict "registry" ($old.registry | default $new.registry | default .Values.image.registry)
         "name" ($old.name | default $new.name | default "traffic-agent")
         "tag" $tag | toJson -}}
{{- end -}}

{{/* JSON list of the namespaces of a static selection; empty for the whole cluster. */}}
{{- define "tm.managed" -}}
{{- $list := .Values.namespaces | default list -}}
{{- if .Values.managerRbac.namespaced -}}
{{- $list = .Values.managerRbac.namespaces | default $list -}}
{{- if not $list -}}
{{- fail "managerRbac.namespaced is true and managerRbac.namespaces is empty: name the namespaces to manage, for example --set managerRbac.namespaces={team-a,team-b}" -}}
{{- end -}}
{{- end -}}
{{- if and $list .Values.namespaceSelector -}}
{{- fail "namespaces and namespaceSelector are both set: keep one, a list of names or a label selector" -}}
{{- end -}}
{{- $list | uniq | toJson -}}
{{- end -}}

{{- define "tm.isNamespaced" -}}
{{- if include "tm.managed" . | fromJsonArray }}true{{ end -}}
{{- end -}}

{{/* Where the webhook's certificate comes from. */}}
{{- define "tm.certificateMethod" -}}
{{- $method := .Values.agentInjector.certificate.method | default "manager" -}}
{{- if and (eq $method "manager") (include "tm.isNamespaced" .) (not .Values.managerRbac.clusterRole) -}}
{{- $method = "helm" -}}
{{- end -}}
{{- $method -}}
{{- end -}}

{{/* Ports below 1024 cannot be opened by every non-root process; the Service keeps the number. */}}
{{- define "tm.webhookPodPort" -}}
{{- $port := .Values.agentInjector.webhook.port | int -}}
{{- if lt $port 1024 }}8443{{ else }}{{ $port }}{{ end -}}
{{- end -}}

{{- define "tm.webhookServicePort" -}}
{{- .Values.agentInjector.service.port | default .Values.agentInjector.webhook.port | int -}}
{{- end -}}

{{- define "tm.webhookName" -}}
{{- .Values.agentInjector.webhook.name }}-{{ include "tm.namespace" . -}}
{{- end -}}

{{/* Is this pass one for rights only? Then "" for everything else. */}}
{{- define "tm.whole" -}}
{{- if not .Values.rbac.only }}true{{ end -}}
{{- end -}}

{{- define "tm.injector" -}}
{{- if .Values.agentInjector.enabled }}true{{ end -}}
{{- end -}}

{{/* Who calls is asked of the API server, which takes rights on the cluster. */}}
{{- define "tm.authentication" -}}
{{- $mode := .Values.security.authentication.mode | default "permissive" }}
{{- $rights := .Values.managerRbac }}
{{- if and $rights.create (include "tm.managed" . | fromJsonArray) (not $rights.clusterRole) (ne $mode "disabled") }}
{{- if eq $mode "enforcing" }}
{{- fail "security.authentication.mode is enforcing and managerRbac.clusterRole is false: the manager asks the API server who calls, which takes a ClusterRole; set managerRbac.clusterRole to true" }}
{{- end }}
{{- $mode = "disabled" }}
{{- end }}
{{- $mode }}
{{- end -}}

{{/* Agents up to 2.21 read their configuration from a ConfigMap. */}}
{{- define "tm.agentsMap" -}}
{{- with .Values.compatibility.version }}
{{- if semverCompare "<2.22.0-0" . }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* The webhook configuration is a cluster's object: it may go with the rights instead of with the rest. */}}
{{- define "tm.rendersWebhook" -}}
{{- if and .Values.agentInjector.enabled (eq (not .Values.rbac.only) (not .Values.rbac.webhook)) }}true{{ end -}}
{{- end -}}

{{/* Workload kinds in force, as `apps` resources, and what leads from their pods to them. */}}
{{- define "tm.appsResources" -}}
{{- $kinds := list -}}
{{- $w := .Values.workloads -}}
{{- if $w.deployments.enabled }}{{ $kinds = append $kinds "deployments" }}{{ end -}}
{{- if or $w.replicaSets.enabled $w.deployments.enabled $w.argoRollouts.enabled }}{{ $kinds = append $kinds "replicasets" }}{{ end -}}
{{- if $w.statefulSets.enabled }}{{ $kinds = append $kinds "statefulsets" }}{{ end -}}
{{- $kinds | toJson -}}
{{- end -}}

{{/* Set keys of .v below .prefix that neither .known nor .ignored covers, one a line. */}}
{{- define "tm.unknown" -}}
{{- $c := . -}}
{{- range $key, $value := .v -}}
{{- $path := printf "%s%s" $c.prefix $key -}}
{{- $kind := index $c.known $path -}}
{{- if eq ($kind | default "") "map" -}}
{{- if kindIs "map" $value }}{{ include "tm.unknown" (dict "v" $value "known" $c.known "ignored" $c.ignored "prefix" (printf "%s." $path)) }}{{ end -}}
{{- else if or $kind (hasKey $c.ignored $path) -}}
{{- else if and (kindIs "map" $value) (include "tm.isPrefix" (dict "ignored" $c.ignored "prefix" (printf "%s." $path))) -}}
{{- include "tm.unknown" (dict "v" $value "known" $c.known "ignored" $c.ignored "prefix" (printf "%s." $path)) -}}
{{- else }}{{ printf "%s\n" $path }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "tm.isPrefix" -}}
{{- $prefix := .prefix -}}
{{- range $key, $reason := .ignored }}{{ if hasPrefix $prefix $key }}1{{ end }}{{ end -}}
{{- end -}}

{{/* Is the dotted .path set in .v? */}}
{{- define "tm.isSet" -}}
{{- $at := .v -}}
{{- $found := true -}}
{{- range splitList "." .path -}}
{{- if and $found (kindIs "map" $at) }}{{ if hasKey $at . }}{{ $at = index $at . }}{{ else }}{{ $found = false }}{{ end }}{{ else }}{{ $found = false }}{{ end -}}
{{- end -}}
{{- if $found }}true{{ end -}}
{{- end -}}

{{/* Workload kinds in force, by their names in the manager. */}}
{{- define "tm.workloadKinds" -}}
{{- $kinds := list -}}
{{- $w := .Values.workloads -}}
{{- if $w.deployments.enabled }}{{ $kinds = append $kinds "Deployment" }}{{ end -}}
{{- if $w.replicaSets.enabled }}{{ $kinds = append $kinds "ReplicaSet" }}{{ end -}}
{{- if $w.statefulSets.enabled }}{{ $kinds = append $kinds "StatefulSet" }}{{ end -}}
{{- if $w.argoRollouts.enabled }}{{ $kinds = append $kinds "Rollout" }}{{ end -}}
{{- join " " $kinds -}}
{{- end -}}

{{/* gRPC probes of the kubelet exist from Kubernetes 1.24. */}}
{{- define "tm.probe" -}}
{{- if semverCompare ">=1.24.0-0" .Capabilities.KubeVersion.Version -}}
grpc: {port: {{ .Values.apiPort }}}
{{- else -}}
tcpSocket: {port: api}
{{- end -}}
{{- end -}}

{{/* Where pods of the release may run; the hook's as well. */}}
{{- define "tm.placement" -}}
{{- with .Values.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
