{{- define "anneal.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "anneal.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "anneal.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "anneal.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Of what belongs to the whole cluster: two releases of one name in two namespaces are two installations. */}}
{{- define "anneal.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "anneal.fullname" .) }}
{{- end }}

{{- define "anneal.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "anneal.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed where serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "anneal.selectorLabels" -}}
app.kubernetes.io/name: {{ include "anneal.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Of which program this is a part, whatever it is called here: by it the plugin and monitoring find operators. */}}
{{- define "anneal.partOf" -}}
app.kubernetes.io/part-of: anneal
{{- end }}

{{/* anneal.labels takes the root, or (list root labels...) with more of them. A key that several have is said once: the
chart's own before the earlier of what is given, and that before commonLabels. */}}
{{- define "anneal.labels" -}}
{{- $root := . }}{{- $more := list }}
{{- if kindIs "slice" . }}{{- $root = first . }}{{- $more = rest . }}{{- end }}
{{- $own := dict "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_")
    "app.kubernetes.io/version" $root.Chart.AppVersion "app.kubernetes.io/managed-by" $root.Release.Service }}
{{- $labels := merge $own (include "anneal.selectorLabels" $root | fromYaml) (include "anneal.partOf" $root | fromYaml) }}
{{- range $more }}{{- $labels = merge $labels (default dict .) }}{{- end }}
{{- merge $labels (default dict $root.Values.commonLabels) | toYaml }}
{{- end }}

{{/* Of the operator's pods: without the versions, which would roll them for nothing. */}}
{{- define "anneal.podLabels" -}}
{{- merge (include "anneal.selectorLabels" . | fromYaml) (include "anneal.partOf" . | fromYaml)
    (default dict .Values.podLabels) (default dict .Values.commonLabels) | toYaml }}
{{- end }}

{{/* Restricted Pod Security: of a pod, and of its container. */}}
{{- define "anneal.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "anneal.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What a pod of the operator's image needs to know of the installation. */}}
{{- define "anneal.env" -}}
- {name: ANNEAL_TRAINER_IMAGE, value: {{ include "anneal.image" (list . .Values.trainerImage) | quote }}}
- {name: ANNEAL_SERVER_IMAGE, value: {{ include "anneal.image" (list . .Values.serverImage) | quote }}}
- {name: ANNEAL_IMAGE_PULL_POLICY, value: {{ .Values.imagePullPolicy | quote }}}
{{- with .Values.watchNamespace }}
- {name: ANNEAL_WATCH_NAMESPACE, value: {{ . | quote }}}
{{- end }}
- {name: LOG_LEVEL, value: {{ .Values.logLevel | quote }}}
- name: ANNEAL_LEASE_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: ANNEAL_IDENTITY
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* anneal.image takes (list root image): a digest wins over the tag. */}}
{{- define "anneal.image" -}}
{{- $root := index . 0 }}{{- $image := index . 1 }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository (default $root.Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{/* What the controllers may do with the objects of the namespaces that they watch. */}}
{{- define "anneal.rules" -}}
- apiGroups: [anneal.dev]
  resources: [trainingruns, modeldeployments, trainingsweeps, crontrainingruns]
  verbs: [get, list, watch]
# Requests by annotation are removed once they are answered; a finalizer is on runs whose claim is deleted with them.
- apiGroups: [anneal.dev]
  resources: [trainingruns, modeldeployments]
  verbs: [patch]
# A run deletes itself when ttlSecondsAfterFinished has passed.
- apiGroups: [anneal.dev]
  resources: [trainingruns]
  verbs: [delete]
- apiGroups: [anneal.dev]
  resources: [trainingruns/status, modeldeployments/status, trainingsweeps/status, crontrainingruns/status]
  verbs: [update]
# An owner reference that blocks deletion needs this right under OwnerReferencesPermissionEnforcement.
- apiGroups: [anneal.dev]
  resources: [trainingruns/finalizers, modeldeployments/finalizers, trainingsweeps/finalizers, crontrainingruns/finalizers]
  verbs: [update]
# Sweeps and schedules make runs of their templates, and delete what was stopped, replaced or is history.
- apiGroups: [anneal.dev]
  resources: [trainingruns]
  verbs: [create, delete]
# A sweep goes when its ttlSecondsAfterFinished is over.
- apiGroups: [anneal.dev]
  resources: [trainingsweeps]
  verbs: [delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- if .Values.failureLogs.enabled }}
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
{{- end }}
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
{{- if .Values.rbac.httpRoutes }}
# Canaries through a Gateway: only deployments with strategy.canary have a route.
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [get, list, create, delete]
- apiGroups: [apps]
  resources: [deployments/scale]
  verbs: [patch]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
