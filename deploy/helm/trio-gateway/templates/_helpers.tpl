{{- define "trio-gateway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "trio-gateway.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "trio-gateway.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "trio-gateway.selector" -}}
app.kubernetes.io/name: {{ include "trio-gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "trio-gateway.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "trio-gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "trio-gateway.image" -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end -}}
{{- end }}

{{- define "trio-gateway.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "trio-gateway.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end }}

{{- define "trio-gateway.secret" -}}
{{ required "existingSecret is empty: make a Secret with DATABASE_URL, REDIS_URL and ADMIN_TOKEN first, the chart makes none" .Values.existingSecret }}
{{- end }}

{{- define "trio-gateway.claim" -}}
{{ default (printf "%s-blobs" (include "trio-gateway.fullname" .)) .Values.persistence.existingClaim }}
{{- end }}

{{/* The grace period of a pod: preStop and SIGTERM's drain both count against it. */}}
{{- define "trio-gateway.grace" -}}
{{ add .Values.drain.beforeSeconds .Values.drain.timeoutSeconds .Values.drain.marginSeconds }}
{{- end }}

{{- define "trio-gateway.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "trio-gateway.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The stores' addresses, as files: an environment can be read from /proc and crash reports. */}}
{{- define "trio-gateway.storeEnv" -}}
- name: DATABASE_URL_FILE
  value: /run/secrets/trio-gateway/database_url
- name: REDIS_URL_FILE
  value: /run/secrets/trio-gateway/redis_url
{{- end }}

{{- define "trio-gateway.secretVolume" -}}
- name: secrets
  secret:
    secretName: {{ include "trio-gateway.secret" . }}
    defaultMode: 0440
    items:
      - {key: {{ .Values.secretKeys.databaseUrl }}, path: database_url}
      - {key: {{ .Values.secretKeys.redisUrl }}, path: redis_url}
      {{- if .Values.admin.enabled }}
      - {key: {{ .Values.secretKeys.adminToken }}, path: admin_token}
      {{- with .Values.secretKeys.metricsToken }}
      - {key: {{ . }}, path: metrics_token}
      {{- end }}
      {{- end }}
{{- end }}

{{- define "trio-gateway.dnsEgress" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
  to:
    - namespaceSelector: {}
      podSelector: {matchLabels: {k8s-app: kube-dns}}
{{- end }}
