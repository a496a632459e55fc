{{- define "modelpress.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 53 | trimSuffix "-" }}
{{- end }}

{{/* Prefix of all names: at most 53 characters, so that suffixes fit into 63. */}}
{{- define "modelpress.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else if contains (include "modelpress.name" .) .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "modelpress.name" .) | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "modelpress.operator" -}}
{{- printf "%s-operator" (include "modelpress.fullname" .) }}
{{- end }}

{{/* Cluster-wide names tell releases in different namespaces apart. */}}
{{- define "modelpress.clusterName" -}}
{{- printf "%s-%s" (include "modelpress.fullname" .) .Release.Namespace }}
{{- end }}

{{- define "modelpress.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "modelpress.operator" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "modelpress.lease" -}}
{{- default (include "modelpress.operator" .) .Values.leaderElection.leaseName }}
{{- end }}

{{- define "modelpress.selector" -}}
app.kubernetes.io/name: {{ include "modelpress.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "modelpress.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "modelpress.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: modelpress
{{- end }}

{{- define "modelpress.labels" -}}
{{ include "modelpress.commonLabels" . }}
app.kubernetes.io/component: operator
{{- end }}

{{/* The chart's labels and more of the user's, which cannot replace them. Argument: list of those and the root. */}}
{{- define "modelpress.labelsWith" -}}
{{- merge (dict) (include "modelpress.labels" (index . 1) | fromYaml) (index . 0) | toYaml }}
{{- end }}

{{/* An image by digest, else by tag. Argument: list of the image's values and the root. */}}
{{- define "modelpress.image" -}}
{{- $image := index . 0 }}
{{- $root := index . 1 }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository (default $root.Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{/* What the operator may do where it serves. No Secrets, no ConfigMaps, no wildcards: pods mount what they need. */}}
{{- define "modelpress.rules" -}}
- apiGroups: [modelpress.dev]
  resources: [compressionjobs, compressionsweeps]
  verbs: [list, watch]
- apiGroups: [modelpress.dev]
  resources: [compressionjobs]
  verbs: [get, create]
- apiGroups: [modelpress.dev]
  resources: [compressionjobs/status, compressionsweeps/status]
  verbs: [patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, get, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [services]
  verbs: [get, create, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, list]
{{- end }}
